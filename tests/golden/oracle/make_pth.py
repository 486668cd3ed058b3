"""Writes data/state_dict.pth (and state_dict.txt, what is in it) as PyTorch itself does, for engine/pth.c.

    python oracle/make_pth.py        # in tests/golden; any PyTorch from 1.13 on
"""
import collections
import pathlib

import torch

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"


class Net(torch.nn.Module):
    """A module, so that the dictionary has the attribute _metadata that real checkpoints have."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(2, 3, (3, 1, 1))
        self.proj = torch.nn.Linear(5, 4).to(torch.bfloat16)
        self.low = torch.nn.Linear(4, 3, bias=False).to(torch.float16)
        self.tied = torch.nn.Linear(4, 3, bias=False)
        self.tied.weight = self.low.weight
        self.register_buffer("octets", torch.arange(7, dtype=torch.uint8))
        self.register_buffer("numbers", torch.tensor([-1, 0, 70000], dtype=torch.int32))
        self.register_buffer("scalar", torch.tensor(2.5))
        self.register_buffer("empty", torch.zeros(0, 3))


def main():
    torch.manual_seed(7)
    state = Net().state_dict()
    long = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    state["view"] = long[1:3]  # a part of a storage
    state["one"] = long[2:3, 0:1]  # strides that do not matter
    torch.save(state, DATA / "state_dict.pth")
    lines = [f"# torch {torch.__version__}: name, type, shape, then values"]
    for name, t in sorted(state.items()):
        values = " ".join(f"{v:.9g}" for v in t.to(torch.float32).flatten().tolist())
        shape = ",".join(map(str, t.shape))
        kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8",
                torch.int32: "I32"}[t.dtype]
        lines.append(f"{name} {kind} [{shape}] {values}".rstrip())
    (DATA / "state_dict.txt").write_text("\n".join(lines) + "\n")
    assert isinstance(state, collections.OrderedDict)


if __name__ == "__main__":
    main()

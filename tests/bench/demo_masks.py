"""Masks of the demo model's heads out of a checkpoint, for cuda_attention --masks and gpu_peers.py --mask.

    build/haste-run -m data/demo -p "a purple triangle spinning on the left and a yellow star bouncing on the right over a gradient teal background" \\
        --seed 1 --attention xattention --block 128 --stride 16 --top-p .9 --dense-steps 3 --checkpoint run.state --checkpoint-every 15 -o null:
    (copied while the run went on behind step 15)
    python3 tests/bench/demo_masks.py run.state tests/bench/demo_masks.safetensors

Writes one tensor `mask`, U8 [heads of all layers, rows, columns]: those of the first branch. Nothing but Python is needed.
"""

import json
import struct
import sys

HEADS = 3


def main(state, out):
    with open(state, "rb") as f:
        data = f.read()
    (n,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    mask = bytearray()
    layers = 0
    while (entry := header.get(f"attention.0.{layers}.bits")) is not None:
        begin, end = entry["data_offsets"]
        words = struct.unpack(f"<{(end - begin) // 4}I", body[begin:end])
        rows = len(words) // HEADS  # a word holds a row: at most 32 columns
        if rows > 32:
            sys.exit(f"{state}: {rows} rows of blocks, expected at most 32")
        for word in words:
            mask += bytes(word >> c & 1 for c in range(rows))
        layers += 1
    if not layers:
        sys.exit(f"{state}: no masks; found {len(header)} tensors, expected attention.0.0.bits and so on")
    shape = [HEADS * layers, rows, rows]
    top = json.dumps({"mask": {"dtype": "U8", "shape": shape, "data_offsets": [0, len(mask)]}}).encode()
    top += b" " * (-len(top) % 8)
    with open(out, "wb") as f:
        f.write(struct.pack("<Q", len(top)) + top + mask)
    share = [sum(mask[h * rows * rows : (h + 1) * rows * rows]) / rows**2 for h in range(shape[0])]
    print(f"{out}: {shape}, density {sum(share) / len(share):.3f}:", " ".join(f"{s:.2f}" for s in share))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

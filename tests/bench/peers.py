"""What gpu_peers.py and gpu_pipeline.py share: Wan2.1's shapes with random weights, stopwatches, a log of the clocks.

Everything also runs on a CPU at toy sizes (device "cpu"), so that a script can be tried where there is no GPU.
"""
import contextlib
import json
import shutil
import statistics
import subprocess
import threading
import time

import torch

BASE = dict(patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16,
            text_dim=4096, freq_dim=256, ffn_dim=8960, num_layers=30, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=1024)
MODELS = {"1.3B": BASE, "14B": dict(BASE, num_attention_heads=40, ffn_dim=13824, num_layers=40)}
SIZES = {"480p": (832, 480), "720p": (1280, 720)}  # 81 frames
FRAMES = 81
TOY = dict(num_attention_heads=1, ffn_dim=64, num_layers=2, text_dim=32)
UMT5_XXL = dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                relative_attention_num_buckets=32, relative_attention_max_distance=128,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False)
TOY_UMT5 = dict(UMT5_XXL, vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)


def latent_shape(size, frames=FRAMES):
    width, height = size
    return (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)


def build(device, dtype, make):
    """make() with its parameters made on the device in dtype, at random as the class itself initialises them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = make()
    finally:
        torch.set_default_dtype(before)
    return module.eval().requires_grad_(False)


def transformer(name, device, toy=False):
    """As from_pretrained(torch_dtype=bfloat16) leaves it: the modules that diffusers keeps in fp32 are in fp32."""
    from diffusers import WanTransformer3DModel

    model = build(device, torch.bfloat16, lambda: WanTransformer3DModel(**dict(MODELS[name], **(TOY if toy else {}))))
    keep = WanTransformer3DModel._keep_in_fp32_modules or []
    for path, value in list(model.named_parameters()) + list(model.named_buffers()):
        if any(part in keep for part in path.split(".")):
            value.data = value.data.float()
    return model


def vae(device, dtype, toy=False):
    import diffusers
    from diffusers import AutoencoderKLWan

    diffusers.utils.logging.set_verbosity_error()  # it warns of every change of type, with nothing to warn of
    small = dict(base_dim=8, num_res_blocks=1) if toy else {}
    return build(device, torch.float32, lambda: AutoencoderKLWan(**small)).to(dtype)


def text_encoder(device, toy=False):
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(**(TOY_UMT5 if toy else UMT5_XXL))
    return build(device, torch.bfloat16, lambda: UMT5EncoderModel(config))


def cudnn_attention(device):
    """scaled_dot_product_attention through cuDNN; on a CPU through what there is."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION]) if device != "cpu" else contextlib.nullcontext()


def synchronize(device):
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_of(fn, device):
    synchronize(device)
    start = time.perf_counter()
    fn()
    synchronize(device)
    return time.perf_counter() - start


def median_ms(fn, device, repeats=5, warm=2):
    """(median, least, most) milliseconds of the device between two events around each call."""
    for _ in range(warm):
        fn()
    if device == "cpu":
        times = [1e3 * seconds_of(fn, device) for _ in range(repeats)]
    else:
        times = []
        for _ in range(repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            fn()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times), min(times), max(times)


def reset_peak(device):
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device):
    return torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else 0.0


def weights_gib(module):
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 2**30


class Clocks:
    """Samples clocks, power and temperature with nvidia-smi while a part runs."""

    FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")

    def __init__(self):
        self.samples, self.process = [], None
        if shutil.which("nvidia-smi"):
            self.process = subprocess.Popen(
                ["nvidia-smi", "--query-gpu=" + ",".join(self.FIELDS), "--format=csv,noheader,nounits", "-i", "0",
                 "-lms", "200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                self.samples.append([float(x) for x in line.split(",")])
            except ValueError:
                pass  # a field that this card does not report

    def part(self):
        """What was seen since the last call, while the GPU was busy: least, median, most of each field."""
        taken, self.samples = self.samples, []
        busy = [s for s in taken if s[4] >= 50] or taken
        return {name: [min(v), statistics.median(v), max(v)]
                for name, v in zip(self.FIELDS[:4], zip(*busy))} if busy else {}

    def close(self):
        if self.process:
            self.process.terminate()
            self.process.wait()


def clocks_line(seen):
    if not seen:
        return "clocks: not seen"
    sm, power, heat = seen["clocks.sm"], seen["power.draw"], seen["temperature.gpu"]
    return (f"clocks while busy: SM {sm[0]:.0f} / {sm[1]:.0f} / {sm[2]:.0f} MHz (least, median, most), "
            f"{power[1]:.0f} W median, {power[2]:.0f} W most, {heat[2]:.0f} C")


def machine(device):
    """Who measured, for the head of a file of results."""
    import platform

    versions = {}
    for name in ("torch", "triton", "diffusers", "transformers", "flash_attn.cute"):
        with contextlib.suppress(Exception):
            versions[name] = __import__(name, fromlist=["x"]).__version__
    found = {"date": time.strftime("%Y-%m-%d %H:%M"), "python": platform.python_version(), "versions": versions}
    if device == "cpu":
        return dict(found, device=platform.processor() or "cpu")
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader", "-i", "0"],
                            capture_output=True, text=True).stdout.strip()
    return dict(found, device=torch.cuda.get_device_name(), driver=driver, cudnn=torch.backends.cudnn.version())


class Results:
    """Rows that are printed and written at once, so that a run that is cut short has left what it measured."""

    def __init__(self, path, device):
        self.path, self.table = path, dict(machine(device), rows=[], parts={})
        print(json.dumps({k: v for k, v in self.table.items() if k not in ("rows", "parts")}), flush=True)

    def add(self, part, what, **values):
        self.table["rows"].append({"part": part, "what": what, **values})
        print(row_text(self.table["rows"][-1]), flush=True)
        self.write()

    def part(self, name, seconds, clocks, failure=None):
        self.table["parts"][name] = {"seconds": round(seconds, 1), "clocks": clocks,
                                     **({"failure": failure} if failure else {})}
        print(f"-- {name}: {seconds:.1f} s; {clocks_line(clocks)}{'; FAILED: ' + failure if failure else ''}", flush=True)
        self.write()

    def write(self):
        with open(self.path, "w", encoding="utf-8") as f:
            json.dump(self.table, f, indent=1)


def row_text(row):
    values = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                       if k not in ("part", "what"))
    return f"{row['part']:12s} {row['what']:44s} {values}"

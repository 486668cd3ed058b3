"""Does haste-run make the same video as diffusers? Same model, prompt, noise file and settings, both in fp32.

    python parity_demo.py --haste build/haste-run -m data/demo --prompts prompts/evaluate.txt

Prints PSNR per clip and the median; exit status 1 if the median is below --least (40 dB). With --speed it also prints
the ratio of the two programs' seconds per stage on as many threads each.
"""
import argparse
import glob
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from diffusers_cpu import Peer, load_noise, model_defaults, read_json, save_latents


def psnr(a, b):
    if a.shape != b.shape:
        sys.exit(f"frames differ in shape: {a.shape} and {b.shape}")
    mse = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 99.0 if mse == 0 else 10 * np.log10(255.0**2 / mse)


def haste(args, prompt, negative, value, shift, noise, folder):
    """Runs haste-run; png frames are exact RGB."""
    stats = os.path.join(folder, "stats.json")
    command = [args.haste, "-m", args.model, "-p", prompt, "-n", negative, "--noise", noise, "--shift", str(shift),
               "--sigmas", args.sigmas, "--solver", "unipc", "--device", args.device, "--precision", args.precision,
               "--threads", str(args.threads), "--stats", stats, "-o", folder + "/frames/", "--quiet"]
    for k, v in value.items():
        command += ["--" + k, str(v)]
    subprocess.run(command, check=True)
    paths = sorted(glob.glob(folder + "/frames/*.png"))
    frames = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths])
    return frames, read_json(stats)["seconds"]


def read_prompts(path, count):
    with open(path, encoding="utf-8") as f:
        lines = [line.strip() for line in f]
    return [line for line in lines if line and not line.startswith("#")][:count]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--haste", default="build/haste-run")
    p.add_argument("-m", "--model", default="data/demo")
    p.add_argument("--prompts", default="prompts/evaluate.txt")
    p.add_argument("--count", type=int, default=8, help="clips: the first lines of the prompt file")
    for name in ("width", "height", "frames", "steps"):
        p.add_argument("--" + name, type=int)
    p.add_argument("--guidance", type=float)
    p.add_argument("--shift", type=float)
    p.add_argument("--sigmas", choices=["a", "b"], default="a")
    p.add_argument("--device", default="cpu", help="of haste-run")
    p.add_argument("--precision", default="fp32", help="of haste-run; diffusers is always fp32")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--least", type=float, default=40.0, help="dB that the median must reach")
    p.add_argument("--speed", action="store_true")
    args = p.parse_args()
    base = model_defaults(args.model)
    value = {k: base[k] if getattr(args, k) is None else getattr(args, k) for k in
             ("width", "height", "frames", "steps", "guidance")}
    shift = base["shift"] if args.shift is None else args.shift
    negative = base["negative_prompt"]
    peer = Peer(args.model, "fp32", args.threads, args.sigmas, shift)
    result, ratios = [], {"text": [], "denoise": [], "decode": []}
    channels = read_json(args.model, "transformer", "config.json")["in_channels"]
    shape = (channels, (value["frames"] - 1) // 4 + 1, value["height"] // 8, value["width"] // 8)
    for i, prompt in enumerate(read_prompts(args.prompts, args.count)):
        with tempfile.TemporaryDirectory() as folder:
            noise = os.path.join(folder, "noise.safetensors")
            save_latents(noise, np.random.default_rng(i).standard_normal(shape))
            ours, mine = haste(args, prompt, negative, value, shift, noise, folder)
            theirs, _, times = peer.run(prompt, negative, noise=load_noise(noise), **value)
        db = psnr(ours, theirs)
        result.append(db)
        for stage in ratios:
            ratios[stage].append(times[stage] / max(mine[stage], 1e-9))
        print(f"{db:6.2f} dB  {np.abs(ours.astype(int) - theirs).max():3d} most  {prompt[:80]}", flush=True)
    if not result:
        sys.exit(f"{args.prompts}: no prompts")
    print(f"median {statistics.median(result):.2f} dB, least {min(result):.2f} dB over {len(result)} clips")
    if args.speed:
        if len(result) > 1:  # the first clip warms up what one torch process keeps; haste-run starts anew each time
            ratios = {k: v[1:] for k, v in ratios.items()}
        print("speed: " + ", ".join(f"{k} {statistics.median(v):.2f}x" for k, v in ratios.items()), "of diffusers")
    sys.exit(0 if statistics.median(result) >= args.least else 1)


if __name__ == "__main__":
    main()

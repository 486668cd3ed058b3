"""Are the frames of haste-run on a GPU as near to the fp32 ones as diffusers' are? Same model, prompts, noise, settings.

    python parity_gpu.py PROGRAMS OUT [--cpu-clips 2] [--count 16]

PROGRAMS: a folder with haste-run (scripts/bundle.sh, or a build folder). Every clip is made by haste-run on the GPU in
fp32, fp16 and bf16, by diffusers on the GPU in fp32 and bf16 (its VAE in fp32, as its documentation has it, and in bf16),
and the first --cpu-clips by haste-run on the CPU in fp32. Prints medians of PSNR over the clips; OUT/parity.json has all.
Goals: in bf16 haste-run is at most 1 dB farther from the CPU's fp32 frames than diffusers in bf16 is from diffusers in
fp32; fp32 or fp16 reach 45 dB. Exit status 1 if one is missed. Without --cpu-clips, and for clips beyond them, diffusers
in fp32 stands for the CPU's frames (the two agree to 93 dB on a CPU: docs/testing.md). Where the GPU machine's programs
have no CPU backend: --keep N leaves the frames of the first N clips in OUT/clip-*.npz (about 10 MB each), and

    python parity_gpu.py PROGRAMS OUT --kept        makes them with the CPU, elsewhere, and compares.

Needs what diffusers_cpu.py needs. To try it without a GPU: --device cpu --count 1 --steps 2 --size 64x64 --frames 5.
"""
import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from diffusers_cpu import Peer, load_noise, model_defaults, read_json, save_latents
from parity_demo import psnr, read_prompts

LEAST, WITHIN = 45.0, 1.0  # dB


class Clips:
    """The clips to make: prompt and noise file of each, and what they all share."""

    def __init__(self, args):
        base = model_defaults(args.model)
        self.model, self.out, self.negative, self.shift = args.model, args.out, base["negative_prompt"], base["shift"]
        if args.size:
            base["width"], base["height"] = (int(x) for x in args.size.split("x"))
        self.value = {k: getattr(args, k, None) or base[k] for k in ("width", "height", "frames", "steps", "guidance")}
        self.prompts = read_prompts(args.prompts, args.count)
        channels = read_json(args.model, "transformer", "config.json")["in_channels"]
        v = self.value
        for i in range(len(self.prompts)):
            shape = (channels, (v["frames"] - 1) // 4 + 1, v["height"] // 8, v["width"] // 8)
            save_latents(self.noise(i), np.random.default_rng(i).standard_normal(shape))

    def noise(self, i):
        return os.path.join(self.out, f"noise-{i:02d}.safetensors")


def haste(program, clips, i, device, precision, threads):
    """Frames of clip i, uint8 [F, H, W, 3]."""
    handle, name = tempfile.mkstemp(".rgb", dir=clips.out)
    os.close(handle)
    command = [program, "-m", clips.model, "-p", clips.prompts[i], "-n", clips.negative, "--noise", clips.noise(i),
               "--shift", str(clips.shift), "--sigmas", "a", "--solver", "unipc", "--device", device,
               "--precision", precision, "--threads", str(threads), "-o", name, "--quiet"]
    for k, v in clips.value.items():
        command += ["--" + k, str(v)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, OMP_WAIT_POLICY="passive"))
    if done.returncode:
        os.remove(name)
        raise RuntimeError(f"haste-run --device {device} --precision {precision} ends with {done.returncode}: "
                           + done.stderr.strip()[-300:])
    v = clips.value
    frames = np.fromfile(name, np.uint8).reshape(v["frames"], v["height"], v["width"], 3)
    os.remove(name)
    return frames


def diffusers(clips, dtype, vae, device):
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean fp32
    peer = Peer(clips.model, dtype, 0, "a", clips.shift, device, vae)
    return [peer.run(p, clips.negative, noise=load_noise(clips.noise(i)), **clips.value)[0]
            for i, p in enumerate(clips.prompts)]


def haste_run(args):
    program = os.path.join(args.programs, "haste-run")
    return program if os.path.exists(program) else sys.exit(f"{program}: not there")


def kept_file(args, i):
    return os.path.join(args.out, f"clip-{i:02d}.npz")


def make_kept(args, clips):
    """The variants that --keep has left, and the CPU's frames of the same clips."""
    made = {}
    for i in range(len(clips.prompts)):
        if not os.path.exists(kept_file(args, i)):
            break
        with np.load(kept_file(args, i)) as kept:
            for name in kept.files:
                made.setdefault(name, []).append(kept[name])
    count = max((len(frames) for frames in made.values()), default=0)
    made["haste CPU fp32"] = all_of("haste CPU fp32", lambda: [
        haste(haste_run(args), clips, i, "cpu", "fp32", os.cpu_count() or 1) for i in range(count)])
    return made


def all_of(name, fn):
    """What fn returns; no clips, and the reason on the screen, if it fails."""
    start = time.perf_counter()
    try:
        clips = fn()
    except RuntimeError as failure:
        clips = []
        print(f"{name} FAILED: {failure}")
    print(f"{name}: {len(clips)} clips, {time.perf_counter() - start:.1f} s", flush=True)
    return clips


def make_all(args, clips):
    """{variant: [frames of every clip]}; the CPU's clips are made while the GPU works."""
    program, made = haste_run(args), {}
    cpu = concurrent.futures.ThreadPoolExecutor(1)
    gpu = concurrent.futures.ThreadPoolExecutor(4 if args.device == "cuda" else 1)
    threads = max(1, (os.cpu_count() or 2) * 3 // 4)
    slow = [cpu.submit(haste, program, clips, i, "cpu", "fp32", threads) for i in range(args.cpu_clips)]
    for precision in args.precisions.split(","):
        jobs = [gpu.submit(haste, program, clips, i, args.device, precision, 1) for i in range(len(clips.prompts))]
        made["haste " + precision] = all_of("haste " + precision, lambda: [job.result() for job in jobs])
    for name, dtype, vae in (("diffusers fp32", "fp32", "fp32"), ("diffusers bf16", "bf16", "fp32"),
                             ("diffusers bf16, VAE too", "bf16", "bf16")):
        made[name] = all_of(name, lambda: diffusers(clips, dtype, vae, args.device))
    made["haste CPU fp32"] = all_of("haste CPU fp32", lambda: [job.result() for job in slow])
    return made


def compare(made):
    """[(what, against, [dB of each clip])]"""
    pairs = [(a, b) for b in ("diffusers fp32", "haste CPU fp32") for a in made if a != b]
    return [(a, b, [float(psnr(x, y)) for x, y in zip(made[a], made[b])])
            for a, b in pairs if made.get(a) and made.get(b)]


def verdict(rows, made):
    """Every goal in a line; True if all are met. Clips that the CPU did not make stand against diffusers in fp32."""
    of = {(a, b): dbs for a, b, dbs in rows}
    done = len(made["haste CPU fp32"])

    def ours(name):
        near, far = of.get((name, "haste CPU fp32"), []), of.get((name, "diffusers fp32"), [])
        dbs = near[:done] + far[done:]
        return statistics.median(dbs) if dbs else 0.0

    theirs = statistics.median(of.get(("diffusers bf16", "diffusers fp32")) or [float("nan")])
    mine, most = ours("haste bf16"), max(ours("haste fp32"), ours("haste fp16"))
    near, exact = mine >= theirs - WITHIN, most >= LEAST
    print(f"bf16: haste-run {mine:.2f} dB, diffusers {theirs:.2f} dB: {'' if near else 'NOT '}within {WITHIN} dB")
    print(f"fp32 or fp16: {most:.2f} dB, {'at least' if exact else 'NOT'} {LEAST}")
    return near and exact


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("programs")
    p.add_argument("out")
    p.add_argument("-m", "--model", default="data/demo")
    p.add_argument("--prompts", default="prompts/evaluate.txt")
    p.add_argument("--count", type=int, default=16)
    p.add_argument("--cpu-clips", type=int, default=2)
    p.add_argument("--keep", type=int, default=0)
    p.add_argument("--kept", action="store_true")
    p.add_argument("--precisions", default="fp32,fp16,bf16", help="of haste-run on the device")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    p.add_argument("--size")
    p.add_argument("--frames", type=int)
    p.add_argument("--steps", type=int)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    clips = Clips(args)
    made = make_kept(args, clips) if args.kept else make_all(args, clips)
    for i in range(min(args.keep, len(clips.prompts))):
        np.savez_compressed(kept_file(args, i), **{name: frames[i] for name, frames in made.items() if i < len(frames)})
    rows = compare(made)
    for i in range(len(clips.prompts)):
        os.remove(clips.noise(i))
    print(f"\nPSNR over clips, dB; {clips.value}")
    print(f"{'frames of':26s} {'against':16s} clips  median   least    most")
    for a, b, dbs in rows:
        print(f"{a:26s} {b:16s} {len(dbs):5d} {statistics.median(dbs):7.2f} {min(dbs):7.2f} {max(dbs):7.2f}")
    with open(os.path.join(args.out, "parity-kept.json" if args.kept else "parity.json"), "w", encoding="utf-8") as f:
        json.dump({"settings": clips.value, "prompts": clips.prompts,
                   "psnr": [{"frames": a, "against": b, "dB": dbs} for a, b, dbs in rows]}, f, indent=1)
    sys.exit(0 if verdict(rows, made) else 1)


if __name__ == "__main__":
    main()

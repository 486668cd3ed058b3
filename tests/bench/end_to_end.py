"""Seconds and memory of whole videos at full size, random weights, from few steps: dense, and sparse with reuse.

    python end_to_end.py PROGRAMS OUT.json [CONFIG...] [--of 50] [--density 0.26] [--period 5] [--device cuda]

PROGRAMS: the folder with haste-run. CONFIG: 1.3b-480p 1.3b-720p 14b-720p (default: all three), 81 frames, guidance on,
so a step is two forwards. For each method one run of five steps with random numbers for weights (haste-run
--random-weights): two dense steps, of which the first one tunes and is left out, then masks predicted, reused, predicted
again. With such weights attention is nearly even, so that a threshold keeps a little less than its share of the blocks;
the density that was reached is reported. The total of --of steps with masks predicted once in --period steps is EXTRAPOLATED from the seconds
of each kind of step:

    load + text + dense steps x dense + first prediction + further predictions + steps that reuse + decode + encode

Beside it: gpu_pipeline.py in the same call. --device cpu runs toy sizes, to try the script without a GPU.
"""
import argparse
import json
import pathlib
import subprocess
import sys

CONFIGS = {"1.3b-480p": ("wan2.1-1.3b", "832x480"), "1.3b-720p": ("wan2.1-1.3b", "1280x720"),
           "14b-720p": ("wan2.1-14b", "1280x720")}
METHODS = {"xattention": [], "svg2": []}  # and more flags
# thresholds that gave about a density of 0.26 with these weights; others are scaled from them
THRESHOLDS = {("1.3b-480p", "xattention"): 0.271, ("1.3b-720p", "xattention"): 0.273, ("14b-720p", "xattention"): 0.335,
              ("1.3b-480p", "svg2"): 0.315, ("1.3b-720p", "svg2"): 0.328, ("14b-720p", "svg2"): 0.26}
TUNED, DENSE, FIRST, REUSED, AGAIN = range(5)  # what each step of a run is


def run(args, name, method, stats):
    model, size = CONFIGS[name]
    command = [str(pathlib.Path(args.programs) / "haste-run"), "--random-weights", args.model or model,
               "--device", args.device, "--size", args.size or size, "--frames", str(args.frames), "--steps", "5",
               "--seed", "5", "-p", "a red circle", "-n", "dull", "--attention", method,
               "--top-p", f"{THRESHOLDS[name, method] * args.density / 0.26:.4f}",
               "--dense-steps", "2", "--reuse", "interval", "--reuse-interval", "2", "--stats", str(stats),
               "-o", str(stats.with_suffix(".mp4" if args.encode else ".y4m")), *METHODS[method]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(stats.read_text())


def total(s, of, dense, period):
    step = [r["seconds"] for r in s["per_step"]]
    around = sum(s["seconds"][k] for k in ("load", "text", "decode", "encode"))
    if dense >= of:
        return around + of * step[DENSE]
    again = (of - dense + period - 1) // period - 1
    reused = of - dense - 1 - again
    return around + dense * step[DENSE] + step[FIRST] + again * step[AGAIN] + reused * step[REUSED]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("programs")
    p.add_argument("out")
    p.add_argument("configs", nargs="*", metavar="CONFIG")
    p.add_argument("--of", type=int, default=50)
    p.add_argument("--density", type=float, default=0.26)
    p.add_argument("--period", type=int, default=5)
    p.add_argument("--device", default="cuda")
    p.add_argument("--model", help="a folder with configs instead of the published sizes")
    p.add_argument("--size", help="WxH instead of the configuration's")
    p.add_argument("--frames", type=int, default=81)
    p.add_argument("--encode", action="store_true", help="mp4 instead of raw frames (where haste-run has FFmpeg)")
    p.add_argument("--limit", type=int, default=200, help="seconds for one run")
    p.add_argument("--svg2-flags", default=[], type=str.split, help="more flags for svg2, in one argument")
    args = p.parse_args()
    METHODS["svg2"] = args.svg2_flags
    unknown = [name for name in args.configs if name not in CONFIGS]
    if unknown:
        p.error(f"no config {unknown[0]}; there are: {' '.join(CONFIGS)}")
    out, rows, failed = pathlib.Path(args.out), [], False
    for name in args.configs or CONFIGS:
        for method in METHODS:
            try:
                s = run(args, name, method, out.with_name(f"{out.stem}-{name}-{method}.json"))
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as e:
                failed = True
                print(f"{name} {method}: {e}", flush=True)
                continue
            step = [r["seconds"] for r in s["per_step"]]
            dense = total(s, args.of, args.of, args.period)
            five, none = (total(s, args.of, n, args.period) for n in (5, 0))
            row = {"config": name, "method": method, "density": s["per_step"][AGAIN]["density"], "seconds": s["seconds"],
                   "step": step, "device_bytes_by_stage": s["device_bytes_by_stage"], "total_dense": dense,
                   "total_5_dense_steps": five, "total_no_dense_step": none}
            rows.append(row)
            by = " ".join(f"{k} {v / 1e9:.1f}" for k, v in s["device_bytes_by_stage"].items())
            sec = " ".join(f"{k} {s['seconds'][k]:.2f}" for k in ("load", "text", "decode", "encode"))
            print(f"{name} {method}: {sec} s; a step: dense {step[DENSE]:.3f}, first prediction {step[FIRST]:.3f}, "
                  f"reused {step[REUSED]:.3f}, predicted {step[AGAIN]:.3f} s at density {row['density']:.3f}; {args.of} "
                  f"steps EXTRAPOLATED: dense {dense:.1f} s, 5 dense steps {five:.1f} s ({dense / five:.2f}x), none "
                  f"{none:.1f} s ({dense / none:.2f}x); GB by stage: {by}", flush=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()

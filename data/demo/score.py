"""Do the clips show what their prompts ask for? Colour, shape, motion and place of every object, and the background.

    python3 score.py --prompts ../../prompts/demo_hard.txt --clips DIR      i-th clip in name order = i-th prompt
    python3 score.py --prompts ... --truth                                   checks the detector on drawn clips
    python3 score.py --prompts ... --pipeline . --guidance 4 [--strips DIR]    makes the clips with diffusers first

DIR holds one .y4m, one .npy ([frames, height, width, 3] uint8) or one folder of PNG files per prompt.
Needs numpy, scipy, Pillow; --truth also torch, --pipeline also diffusers.
"""
import argparse
import functools
import json
import sys
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from scipy import ndimage

import grammar as g
from shapes import PERIOD, distance, pattern_weights

GRID = 48            # templates are GRID x GRID
ANGLES = 24          # steps over one period of a shape's symmetry
SAMPLES = (np.arange(GRID) + 0.5) / GRID * 2 - 1


# ---------------------------------------------------------------- reading clips

def read_y4m(path, matrix="bt601"):
    data = Path(path).read_bytes()
    end = data.index(b"\n")
    head = {f[:1]: f[1:].decode() for f in data[:end].split()[1:] if f[:1] != b"X"}
    w, h, chroma = int(head[b"W"]), int(head[b"H"]), head.get(b"C", "420")
    full = b"XCOLORRANGE=FULL" in data[:end] or "jpeg" in chroma and b"XCOLORRANGE" not in data[:end]
    sub = 1 if chroma.startswith("444") else 2
    cw, ch = (w + sub - 1) // sub, (h + sub - 1) // sub
    kr, kb = (0.299, 0.114) if matrix == "bt601" else (0.2126, 0.0722)
    frames, pos = [], end + 1
    while pos < len(data):
        pos = data.index(b"\n", pos) + 1
        planes = []
        for pw, ph in ((w, h), (cw, ch), (cw, ch)):
            plane = np.frombuffer(data, np.uint8, pw * ph, pos).reshape(ph, pw).astype(np.float32)
            planes.append(plane if pw == w and ph == h else plane.repeat(sub, 0).repeat(sub, 1)[:h, :w])
            pos += pw * ph
        y, u, v = planes
        y, u, v = (y / 255, (u - 128) / 255, (v - 128) / 255) if full else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
        r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
        rgb = np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], -1)
        frames.append((rgb.clip(0, 1) * 255).round().astype(np.uint8))
    return np.stack(frames)


def read_clip(path, matrix):
    path = Path(path)
    if path.is_dir():
        from PIL import Image
        return np.stack([np.asarray(Image.open(f).convert("RGB")) for f in sorted(path.glob("*.png"))])
    return np.load(path) if path.suffix == ".npy" else read_y4m(path, matrix)


# ---------------------------------------------------------------- one frame

@functools.cache
def templates():
    """All shapes in all orientations, scaled to equal area: [n, GRID*GRID] of 0/1, and their (shape, angle)."""
    names, masks = [], []
    y, x = np.meshgrid(SAMPLES, SAMPLES, indexing="ij")
    fine = (np.arange(400) + 0.5) / 400 * 3 - 1.5
    for k, shape in enumerate(g.SHAPES):
        area = (distance(np, k, fine[None, :], fine[:, None]) < 0).mean() * 9
        for i in range(ANGLES if PERIOD[shape] else 1):
            a = PERIOD[shape] * i / ANGLES
            u, v = x * area ** 0.5, y * area ** 0.5
            masks.append(distance(np, k, u * np.cos(a) + v * np.sin(a), v * np.cos(a) - u * np.sin(a)).ravel() < 0)
            names.append((shape, a))
    return np.array(masks, np.float32), names


def describe(mask, frame):
    """Everything measured on one object in one frame."""
    ys, xs = np.nonzero(mask)
    area, cx, cy = len(xs), xs.mean(), ys.mean()
    core = ndimage.binary_erosion(mask, iterations=2)
    rgb = np.median(frame[core if core.sum() > 20 else mask], axis=0)
    color = min(g.OBJECT_COLORS, key=lambda c: ((rgb - g.OBJECT_COLORS[c]) ** 2).sum())
    h, w = mask.shape
    iy = np.round(cy + SAMPLES * area ** 0.5).astype(int)
    ix = np.round(cx + SAMPLES * area ** 0.5).astype(int)
    inside = ((iy >= 0) & (iy < h))[:, None] & ((ix >= 0) & (ix < w))[None, :]
    patch = (mask[iy.clip(0, h - 1)][:, ix.clip(0, w - 1)] & inside).ravel().astype(np.float32)
    t, names = templates()
    both = t @ patch
    iou = both / (t.sum(1) + patch.sum() - both)
    best = {}
    for (shape, angle), q in zip(names, iou):
        if q > best.get(shape, (-1, 0))[0]:
            best[shape] = (q, angle)
    return dict(x=cx, y=cy, size=area ** 0.5, color=color, shape=max(best, key=lambda s: best[s][0]),
                angle={s: a for s, (_, a) in best.items()}, iou=max(q for q, _ in best.values()))


def expected_background(spec, h, w):
    y, x = np.meshgrid((np.arange(h) + 0.5) * g.SIZE / h, (np.arange(w) + 0.5) * g.SIZE / w, indexing="ij")
    k = pattern_weights(np, x, y)[g.PATTERNS.index(spec.pattern)][..., None]
    return np.array(g.COLORS[spec.bg]) * (1 - k) + np.array(g.shade(spec.bg)) * k


# ---------------------------------------------------------------- one clip

def motion_of(track, shape):
    """Name the motion of one object from its places, sizes and angles over the frames."""
    scale = g.SIZE / 256
    x, y, s = (np.array([d[k] for d in track]) / scale for k in ("x", "y", "size"))
    rx, ry = np.ptp(x), np.ptp(y)
    dx, dy = x[-2:].mean() - x[:2].mean(), y[-2:].mean() - y[:2].mean()
    ratio = s[-3:].mean() / s[:3].mean()
    if ratio > 1.35 or ratio < 0.74:
        return ("grow" if ratio > 1 else "shrink") if max(rx, ry) < 30 else "?"
    if abs(dx) > 70 and ry < 30:
        return "right" if dx > 0 else "left"
    if abs(dy) > 70 and rx < 30:
        return "down" if dy > 0 else "up"
    if rx > 24 and ry > 24 and max(abs(dx), abs(dy)) < 0.5 * min(rx, ry):
        return "orbit"
    if ry > 50 and rx < 25 and abs(dy) < 0.4 * ry:
        return "bounce"
    if max(rx, ry) < 22 and PERIOD[shape]:
        a = np.unwrap(np.array([d["angle"][shape] for d in track]), period=PERIOD[shape])
        if abs(a[-1] - a[0]) > np.pi / 3:
            return "spin"
    return "still" if max(rx, ry) < 22 else "?"


def score_clip(frames, text):
    """-> dict of booleans: background, colour, shape, motion, count, all; and what was seen."""
    spec = g.parse(text)
    n, (t, h, w) = len(spec.objects), frames.shape[:3]
    back = expected_background(spec, h, w)
    tracks, off, valid, extra = [[] for _ in range(n)], [], 0, 0
    for frame in frames.astype(np.float32):
        mask = np.sqrt(((frame - back) ** 2).sum(-1)) > 55
        labels, count = ndimage.label(mask)
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        order = [int(i) + 1 for i in np.argsort(-areas) if areas[i] >= 150 * h * w / 65536]
        seen = [describe(labels == i, frame) for i in order[:n + 1]]
        extra += len(seen) > n and areas[order[n] - 1] > 0.25 * areas[order[n - 1] - 1]
        rest = ndimage.binary_dilation(mask, iterations=3)
        off.append(np.abs(frame - back)[~rest].mean() if (~rest).sum() > 0.2 * h * w else 255.0)
        if len(seen) < n:
            continue
        valid += 1
        seen = seen[:n]
        if n == 2:
            places = [o.place for o in spec.objects]
            axis = "y" if "top" in places else "x" if "left" in places else None
            if axis is None:            # no places asked for: keep each object on its own track
                axis = "x" if abs(seen[0]["x"] - seen[1]["x"]) > abs(seen[0]["y"] - seen[1]["y"]) else "y"
            seen.sort(key=lambda d: d[axis])
            if places[0] in ("right", "bottom"):
                seen.reverse()
        for track, d in zip(tracks, seen):
            track.append(d)
    result = dict(background=bool(np.mean(off) < 12), count=bool(valid >= 0.9 * t and extra <= 0.1 * t),
                  color=False, shape=False, motion=False, seen="")
    if valid >= 0.5 * t:
        def vote(track, key):
            values = [d[key] for d in track]
            return max(set(values), key=values.count)

        seen = [(vote(tr, "color"), vote(tr, "shape")) for tr in tracks]
        seen = [(c, s, motion_of(tr, s)) for (c, s), tr in zip(seen, tracks)]
        choices = [seen, seen[::-1]] if n == 2 and not spec.objects[0].place else [seen]
        want = [(o.color, o.shape, o.motion) for o in spec.objects]
        seen = max(choices, key=lambda c: sum(a == b for s, o in zip(c, want) for a, b in zip(s, o)))
        for k, name in enumerate(("color", "shape", "motion")):
            result[name] = all(s[k] == o[k] for s, o in zip(seen, want))
        result["seen"] = "; ".join(" ".join(s) for s in seen)
    result["all"] = all(result[k] for k in ("background", "count", "color", "shape", "motion"))
    return result


def score_set(clips, prompts, jobs=None):
    with Pool(jobs) as pool:
        return pool.starmap(score_clip, zip(clips, prompts), chunksize=2)


KEYS = ("color", "shape", "motion", "background", "count", "all")


def summary(results):
    return {k: round(100 * float(np.mean([r[k] for r in results])), 1) for k in KEYS}


# ---------------------------------------------------------------- making clips

def drawn_clips(prompts):
    import draw
    for i, text in enumerate(prompts):
        spec = g.parse(text)
        video = draw.render(*draw.pool([spec], [10_000 + i], "cpu"))[0]
        yield ((video.permute(1, 2, 3, 0).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def load_pipeline(folder, device):
    import torch
    from diffusers import WanPipeline
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, prompts, guidance, steps=30, seed=0, batch=32):
    """Clips of all prompts, [33,256,256,3] uint8 each. Every prompt has its own seed: seed + its number."""
    import torch
    out = []
    for i in range(0, len(prompts), batch):
        part = prompts[i:i + batch]
        gens = [torch.Generator("cpu").manual_seed(seed + i + k) for k in range(len(part))]
        video = pipe(prompt=part, negative_prompt=[""] * len(part), height=g.SIZE, width=g.SIZE, num_frames=g.FRAMES,
                     num_inference_steps=steps, guidance_scale=guidance, generator=gens, output_type="np").frames
        out += list((np.asarray(video) * 255).astype(np.uint8))
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--prompts", nargs="+", required=True, help="prompt files")
    ap.add_argument("--clips")
    ap.add_argument("--truth", action="store_true")
    ap.add_argument("--pipeline")
    ap.add_argument("--guidance", type=float, nargs="+", default=[4.0])
    ap.add_argument("--steps", type=int, default=30)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--matrix", choices=["bt601", "bt709"], default="bt601", help="of y4m files")
    ap.add_argument("--strips", help="write six frames of every clip side by side into this folder")
    ap.add_argument("--quiet", action="store_true")
    args = ap.parse_args()
    pipe = load_pipeline(args.pipeline, args.device) if args.pipeline else None
    for path in args.prompts:
        for guidance in args.guidance if pipe else [None]:
            run_set(args, Path(path), pipe, guidance)


def run_set(args, path, pipe, guidance):
    prompts = g.read_prompts(path)
    if args.truth:
        clips = list(drawn_clips(prompts))
    elif pipe:
        clips = generate(pipe, prompts, guidance, args.steps, args.seed)
    elif args.clips:
        files = sorted(p for p in Path(args.clips).iterdir() if p.is_dir() or p.suffix in (".y4m", ".npy"))
        if len(files) != len(prompts):
            sys.exit(f"{len(files)} clips for {len(prompts)} prompts")
        clips = [read_clip(p, args.matrix) for p in files]
    else:
        sys.exit("one of --clips, --truth, --pipeline is needed")
    results = score_set(clips, prompts)
    if args.strips:
        from PIL import Image
        folder = Path(args.strips) / f"{path.stem}-{guidance}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, (clip, r) in enumerate(zip(clips, results)):
            strip = np.concatenate(clip[[0, 6, 13, 19, 26, 32]], 1)
            Image.fromarray(strip).save(folder / f"{i:03d}-{'right' if r['all'] else 'wrong'}.jpg", quality=95)
    for text, r in zip(prompts, results):
        if not args.quiet and not r["all"]:
            print("wrong:", text, "| seen:", r["seen"], "|", ", ".join(k for k in KEYS[:-1] if not r[k]))
    print(json.dumps({"prompts": path.stem, "guidance": guidance, "clips": len(results), **summary(results)}), flush=True)


if __name__ == "__main__":
    main()

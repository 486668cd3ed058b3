"""Draws clips: Spec -> video tensor, anti-aliased, on any torch device."""
import math
import random

import numpy as np
import torch

from grammar import COLORS, FRAMES, PATTERNS, SHAPES, SIZE, shade
from shapes import TAU, distance, pattern_weights


def path_of(obj, rng):
    """x, y, radius, angle of one object over the frames (in pixels of a 256 x 256 picture).

    Start, end and phase of a motion are fixed, the free coordinate is jittered: a caption then
    pins down most of the clip, which is what a model of this size can learn.
    """
    t = np.linspace(0.0, 1.0, FRAMES)
    lone = obj.place == ""
    r = rng.uniform(40, 48) if lone else rng.uniform(32, 36)
    cx, cy = {"": (128, 128), "left": (64, 128), "right": (192, 128), "top": (128, 64), "bottom": (128, 192)}[obj.place]
    j = 14 if lone else 4
    cx, cy = cx + rng.uniform(-j, j), cy + rng.uniform(-j, j)
    x, y, rad, ang = np.full(FRAMES, cx), np.full(FRAMES, cy), np.full(FRAMES, r), np.zeros(FRAMES)
    reach = 72
    m = obj.motion
    if m in ("right", "left"):
        x = 128 + (reach if m == "right" else -reach) * (2 * t - 1)
        y = y + (rng.uniform(-26, 26) if lone else 0)
    elif m in ("up", "down"):
        y = 128 + (reach if m == "down" else -reach) * (2 * t - 1)
        x = x + (rng.uniform(-26, 26) if lone else 0)
    elif m == "grow":
        rad = (24 + 36 * t) * (1 if lone else 0.82)
    elif m == "shrink":
        rad = (60 - 36 * t) * (1 if lone else 0.82)
    elif m == "spin":
        ang = math.pi * t
    elif m == "orbit":                       # once around, clockwise, from the top
        q = 42 if lone else 20
        x, y = cx + q * np.sin(TAU * t), cy - q * np.cos(TAU * t)
    elif m == "bounce":                      # from the floor up and back
        h = 56
        y = cy + h * np.cos(TAU * t)
    return np.stack([x, y, rad, ang], axis=1)


def geometry(spec, seed):
    """All numbers of one clip: paths [2,T,4], shape ids [2] (-1: no such object), colours [2,3], tones [2,3], pattern."""
    rng = random.Random(seed)
    path = np.zeros((2, FRAMES, 4), np.float32)
    path[:, :, 2] = 1
    shape, color = np.full(2, -1), np.zeros((2, 3), np.float32)
    for k, obj in enumerate(spec.objects):
        path[k] = path_of(obj, rng)
        shape[k] = SHAPES.index(obj.shape)
        color[k] = COLORS[obj.color]
    tones = np.array([COLORS[spec.bg], shade(spec.bg)], np.float32)
    return path, shape, color, tones, np.array(PATTERNS.index(spec.pattern))


def backgrounds(tones, patterns, size=SIZE):
    """tones [B,2,3] (0..255), patterns [B] -> [B,3,size,size], the still pictures behind the objects."""
    line = (torch.arange(size, device=tones.device) + 0.5) * (SIZE / size)
    w = pattern_weights(torch, line[None, :].expand(size, size), line[:, None].expand(size, size))[patterns][:, None]
    return tones[:, 0, :, None, None] * (1 - w) + tones[:, 1, :, None, None] * w


def render(paths, shapes, colors, tones, patterns, size=SIZE):
    """The numbers of `geometry`, stacked over a batch -> [B,3,T,size,size] in -1..1."""
    scale = SIZE / size
    grid = (torch.arange(size, device=paths.device, dtype=torch.float32) + 0.5) * scale
    video = backgrounds(tones, patterns, size)[:, :, None].expand(-1, -1, paths.shape[2], -1, -1)
    for k in range(2):
        p = paths[:, k][..., None, None]                        # [B,T,4,1,1]
        x, y = grid[None, None, None, :] - p[:, :, 0], grid[None, None, :, None] - p[:, :, 1]
        c, s, r = torch.cos(p[:, :, 3]), torch.sin(p[:, :, 3]), p[:, :, 2]
        u, v = (x * c + y * s) / r, (y * c - x * s) / r
        sid = shapes[:, k, None, None, None]
        alpha = (0.5 - distance(torch, sid, u, v) * r / scale).clamp(0, 1) * (sid >= 0)
        alpha = alpha[:, None]
        video = video * (1 - alpha) + colors[:, k, :, None, None, None] * alpha
    return video / 127.5 - 1


def pool(specs, seeds, device):
    """The stacked numbers of many clips; index them and hand them to `render`."""
    return [torch.from_numpy(np.stack(g)).to(device) for g in zip(*(geometry(s, q) for s, q in zip(specs, seeds)))]

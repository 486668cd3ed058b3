"""Inputs of the mask tests, made from hashes so that C makes the same float32 bits (README.md, "Inputs").

All arithmetic is exact in double up to one rounding to float32 at the end: no order of operations and no fused
multiply-add can change a bit.
"""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from oracle import hashgen  # noqa: E402

U64 = np.uint64


def gauss(name, start, n):
    """Elements start..start+n of `name`: four 24-bit uniforms, centred; variance 49/48. A multiple of 2^-26."""
    h = hashgen.hashes(name, 4 * n, 4 * start).reshape(n, 4) >> U64(40)
    total = h.astype(np.int64).sum(1) - 33554430
    return (7 * total).astype(np.float64) * 2.0**-26


def side(case, which):
    """The tensor "q", "k" or "v" [heads, n, d] of an input described in manifest.json."""
    name, heads, n, d = case["name"], case["heads"], case["n"], case["d"]
    out = np.empty((heads, n, d), np.float32)
    i = np.arange(n)
    for h in range(heads):
        m = case["mix"][h]
        x = np.zeros((n, d))
        if which == "v":
            out[h] = gauss(f"{name}/v", h * n * d, n * d).reshape(n, d)
            continue
        if m["smooth"]:
            grain, knots = case["grain"], n // case["grain"] + 2
            knot = gauss(f"{name}/smooth", h * knots * d, knots * d).reshape(knots, d)
            w = ((i % grain) / grain)[:, None]
            x += m["smooth"] * ((1 - w) * knot[i // grain] + w * knot[i // grain + 1])
        if m["proto"]:
            c = cluster(case, h)
            x += m["proto"] * gauss(f"{name}/proto", h * case["protos"] * d, case["protos"] * d).reshape(-1, d)[c]
        if m["sink"]:
            first, count = case["sink"]
            hit = (i >= first) & (i < first + count) if which == "k" else i >= 0
            x += m["sink"] * bias(case, h) * hit[:, None]
        noise = m["noise_" + which]
        if noise:
            x += noise * gauss(f"{name}/{which}", h * n * d, n * d).reshape(n, d)
        out[h] = x
    return out


def cluster(case, h):
    """Prototype of every token: runs of `run` tokens share one."""
    j = np.arange(case["n"]) // case["run"]
    hashes = hashgen.hashes(f"{case['name']}/cluster", int(j[-1]) + 1, h << 20)
    return (hashes % U64(case["protos"])).astype(np.int64)[j]


def bias(case, h):
    return gauss(f"{case['name']}/bias", h * case["d"], case["d"])


def checksum(x):
    """Sum over elements of hs_hash64((i << 32) | bits of x[i]) modulo 2^64, as 16 hex digits."""
    bits = np.ascontiguousarray(x, np.float32).reshape(-1).view(np.uint32).astype(U64)
    with np.errstate(over="ignore"):
        return f"{int(hashgen.hash64((np.arange(bits.size, dtype=U64) << U64(32)) | bits).sum(dtype=U64)):016x}"


def init_tokens(case, which, k, salt):
    """Tokens [heads, k] whose vectors start the k-means: one from each of k equal strata; with repeats if n < k."""
    h = np.stack([hashgen.hashes(f"{case['name']}/init_{which}{salt}", k, head << 20) for head in range(case["heads"])])
    if case["n"] < k:
        return (h % U64(case["n"])).astype(np.int32)
    width = case["n"] // k
    return (np.arange(k) * width + (h % U64(width)).astype(np.int64)).astype(np.int32)


def init_centroids(case, x, tokens, stale):
    """Rows of x; where the token is negative, `stale` times the bias vector of the head: far from every token."""
    out = np.empty((*tokens.shape, x.shape[2]), np.float32)
    for h in range(x.shape[0]):
        for j, t in enumerate(tokens[h]):
            out[h, j] = x[h, t] if t >= 0 else (stale * bias(case, h)).astype(np.float32)
    return out

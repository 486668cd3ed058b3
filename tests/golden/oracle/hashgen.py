"""Numbers that Python and C make alike: a counter hash stands in for weight files and random inputs.

genmodel.c holds the same functions; names are part of the seed, so a tensor has the same values wherever it is made.
"""
import numpy as np

MASK = (1 << 64) - 1


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def hash64(x):
    """hs_hash64 of engine/base.h on an array of uint64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hashes(name, n, start=0):
    with np.errstate(over="ignore"):
        return hash64(np.uint64(fnv1a64(name)) + np.arange(start, start + n, dtype=np.uint64))


def uniform(name, shape, scale=1.0, center=0.0):
    """float32 values in [center - scale, center + scale).

    scale and center are rounded to float32 first: then the product is exact in double, so the sum is rounded the same
    way whether or not a compiler contracts it to a fused multiply-add."""
    n = int(np.prod(shape))
    s, c = float(np.float32(scale)), float(np.float32(center))
    out = np.empty(n, np.float32)
    for a in range(0, n, 1 << 20):
        b = min(n, a + (1 << 20))
        u = (hashes(name, b - a, a) >> np.uint64(40)).astype(np.float64) * 2.0**-24
        out[a:b] = ((2.0 * u - 1.0) * s + c).astype(np.float32)
    return out.reshape(shape)


def normalish(name, shape):
    """Unit variance inputs: uniform, so that no logarithm has to agree between languages."""
    return uniform(name, shape, 3.0**0.5)


def weight_rule(name, shape):
    """(scale, center) of a tensor by its name: activations stay O(1) and every term matters."""
    fan_in = int(np.prod(shape)) // int(shape[0])
    unit = (3.0 / fan_in) ** 0.5  # unit variance of the sum over fan_in products
    if name.endswith(".bias"):
        return 0.1, 0.0
    if name.endswith("norm_q.weight") or name.endswith("norm_k.weight"):
        return 0.3, 1.25  # logits with a standard deviation above 1: attention is not a plain mean
    if name.endswith(".gamma") or len(shape) == 1:
        return 0.2, 1.0
    if name.endswith("relative_attention_bias.weight"):
        return 1.0, 0.0
    if name in ("shared.weight", "encoder.embed_tokens.weight"):
        return 1.5, 0.0
    if name.endswith("scale_shift_table"):
        return 0.8, 0.0
    if name.endswith("SelfAttention.q.weight") or name.endswith("SelfAttention.k.weight"):
        return 0.5 * unit, 0.0  # UMT5 does not divide its logits by sqrt(d): keep softmax away from one-hot
    return unit, 0.0


def weight(name, shape):
    key = "shared.weight" if name == "encoder.embed_tokens.weight" else name  # the alias has the values of the original
    scale, center = weight_rule(name, shape)
    return uniform(key, shape, scale, center)


def sample(key, x, limit):
    """The tensor itself if it is small, else `limit` values at hashed positions; golden.c picks the same ones."""
    flat = np.asarray(x, np.float64).reshape(-1)
    if flat.size <= limit:
        return flat
    return flat[(hashes("sample:" + key, limit) % np.uint64(flat.size)).astype(np.int64)]


def text_ids(name, n, vocab):
    """Token ids of the text cases: any piece but the control ones, eos at the end."""
    ids = 4 + (hashes("ids:" + name, n) % np.uint64(vocab - 4)).astype(np.int64)
    ids[-1] = 1
    return ids

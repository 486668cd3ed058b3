"""Recomputes the goldens from the description of the two methods (spec, sections 3 and 4.2) in numpy, in double, and
compares. Shares no code with the published implementations nor with make_masks.py; only the inputs are the same.

    python check_masks.py            every file in data/
"""
import json
import os
import sys

import numpy as np

sys.dont_write_bytecode = True
import inputs  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
TIE = 2e-5  # of a row's sum: what float32 may move


# ---- XAttention ---------------------------------------------------------------------------------------------------
def xattn_scores(q, k, stride, block, length, mask_padding=False):
    """Block scores [heads, blocks, length / block] of the real query blocks; keys are padded with zeros to `length`.

    mask_padding False: what the published code does (padded keys have logit 0 and take mass).
    True: reduced keys made of padding alone take none."""
    heads, n, d = q.shape
    padded = np.zeros((2, heads, length, d))
    padded[0, :, :n], padded[1, :, :n] = q, k
    tile = padded.reshape(2, heads, length // stride, stride, d)
    rows = -(-n // stride)  # a reduced row with at least one real token counts
    logits = np.zeros((heads, rows, length // stride))
    for s in range(stride):  # one antidiagonal of each stride x stride tile: query stride-1-s meets key s
        logits += tile[0, :, :rows, stride - 1 - s] @ tile[1, :, :, s].transpose(0, 2, 1)
    logits /= np.sqrt(d) * stride
    if mask_padding:
        logits[:, :, rows:] = -np.inf
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    per, blocks = block // stride, -(-n // block)
    whole = np.zeros((heads, blocks * per, length // stride))
    whole[:, :rows] = p
    return whole.reshape(heads, blocks, per, length // block, per).sum((2, 4))


def prefix(score, share, more):
    """Shortest descending prefix of each row: entry kept while more(sum before it, share of the row). Stable order."""
    order = np.argsort(-score, axis=-1, kind="stable")
    value = np.take_along_axis(score, order, -1)
    before = np.cumsum(value, -1) - value
    keep = more(before, share)
    mask = np.zeros(score.shape, bool)
    np.put_along_axis(mask, order, keep, -1)
    return mask, value, before, order


def xattn_mask(score, tau, block0=True):
    """tau: a number or one per head. block0: the published code keeps key block 0 of every row."""
    tau = np.asarray(tau, np.float64).reshape(-1, 1, 1)
    mask = prefix(score, tau * score.sum(-1, keepdims=True), lambda before, want: before < want)[0]
    if block0:
        mask[..., 0] = True
    return mask


def cut_is_tie(value, before, order, kept, share, real, total):
    """Rows of a sorted score whose cut float32 may move: the running sum meets the threshold to TIE of the row's sum, or
    values equal to TIE of themselves straddle it, at least one of them at an index below `real`."""
    shape = value.shape[:-1]
    tie = np.zeros(shape, bool)
    for at in np.ndindex(shape):
        v, m = value[at], int(kept[at])
        tie[at] = (np.abs(before[at] - share[at])[max(0, m - 1):m + 1] < TIE * total[at]).any()
        if 0 < m < len(v) and v[m - 1] - v[m] < TIE * v[m - 1]:
            tie[at] |= (order[at][np.abs(v - v[m - 1]) < TIE * v[m - 1]] < real).any()
    return tie


def xattn_ties(score, tau, real):
    """Rows [heads, blocks] where rounding may decide; ties among padded key blocks alone (index >= real) do not count."""
    tau = np.asarray(tau, np.float64).reshape(-1, 1, 1)
    total = score.sum(-1, keepdims=True)
    share = np.broadcast_to(tau * total, total.shape)
    _, value, before, order = prefix(score, share, lambda b, w: b < w)
    return cut_is_tie(value, before, order, (before < share).sum(-1), share[..., 0], real, total[..., 0])


# ---- SVG2 ---------------------------------------------------------------------------------------------------------
def distances(x, c):
    return (x * x).sum(-1)[:, :, None] + (c * c).sum(-1)[:, None, :] - 2 * x @ c.transpose(0, 2, 1)


def kmeans(x, c, iterations, tol=1e-4):
    """Labels, centroids, sizes, rounds run, smallest relative margin between nearest and second nearest centroid."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    heads, k = c.shape[:2]
    margin, shift_margin = np.inf, np.inf
    for it in range(max(iterations, 1)):
        dist = distances(x, c)
        label = dist.argmin(-1)
        two = np.partition(dist, 1, -1)[..., :2]
        near = np.take_along_axis((c * c).sum(-1), label, 1)
        margin = min(margin, ((two[..., 1] - two[..., 0]) / ((x * x).sum(-1) + near)).min())
        size = np.stack([np.bincount(label[h], minlength=k) for h in range(heads)])
        if iterations == 0:
            return label, c, size, 0, margin, shift_margin
        new = c.copy()
        for h in range(heads):
            total = np.zeros(c.shape[1:])
            np.add.at(total, label[h], x[h])
            some = size[h] > 0
            new[h, some] = total[some] / size[h, some, None]
        shift = np.sqrt(((new - c) ** 2).sum(-1)).max()  # over all heads
        shift_margin = min(shift_margin, abs(np.log(max(shift, 1e-30) / tol)))
        if shift < tol:
            break  # the last update is thrown away
        c = new
    return label, c, size, it + 1, margin, shift_margin


def cluster_probs(cq, ck, size_k):
    s = cq.astype(np.float64) @ ck.astype(np.float64).transpose(0, 2, 1) / np.sqrt(cq.shape[2])
    w = size_k[:, None, :] * np.exp(s - s.max(-1, keepdims=True))  # the maximum runs over empty clusters too
    return w / np.maximum(w.sum(-1, keepdims=True), 1e-12)


def svg_mask(prob, p, ratio):
    p = np.broadcast_to(np.asarray(p, np.float64).reshape(-1, 1, 1), (*prob.shape[:2], 1))
    mask, value, before, order = prefix(prob, p, lambda b, w: b <= w)
    least = int(ratio * prob.shape[2])
    np.put_along_axis(mask, order[..., :least], True, -1)
    tie = cut_is_tie(value, before, order, (before <= p).sum(-1), p[..., 0], prob.shape[2], np.ones(prob.shape[:2]))
    if least:  # the least number cuts somewhere too
        longer = (before <= p).sum(-1) >= least
        last = value[..., least - 1]
        gap = last - value[..., min(least, value.shape[-1] - 1)]
        tie = np.where(longer, tie, gap < TIE * last)
    return mask, tie


def density(mask, size_q, size_k):
    pair = size_q[:, :, None].astype(np.float64) * size_k[:, None, :]
    return (pair * mask).sum((1, 2)) / pair.sum((1, 2))


def attend(q, k, v, mask, label_q, label_k):
    """Token attention under the cluster map, in the original token order."""
    out = np.zeros(q.shape)
    for h in range(q.shape[0]):
        s = q[h].astype(np.float64) @ k[h].astype(np.float64).T / np.sqrt(q.shape[2])
        s[~mask[h][label_q[h]][:, label_k[h]]] = -np.inf
        p = np.exp(s - s.max(-1, keepdims=True))
        out[h] = p / p.sum(-1, keepdims=True) @ v[h].astype(np.float64)
    return out


# ---- comparison ---------------------------------------------------------------------------------------------------
class Checker:
    def __init__(self, path):
        from safetensors.numpy import load_file

        self.t, self.bad, self.done, self.seen = load_file(path), [], {}, set()

    def get(self, key):
        self.seen.add(key)
        return self.t[key]

    def bits(self, key):
        shape = self.get(key + ".shape")
        return np.unpackbits(self.get(key), axis=-1, bitorder="little")[..., :shape[-1]].astype(bool).reshape(shape)

    def note(self, kind, ok, key, what=""):
        good, bad = self.done.get(kind, (0, 0))
        self.done[kind] = (good + bool(ok), bad + (not ok))
        if not ok:
            self.bad.append(f"{kind} {key} {what}")

    def floats(self, kind, key, x, tol):
        self.note(kind, tuple(self.get(key + ".shape")) == x.shape, key, "shape")
        ref = self.get(key).astype(np.float64)
        mine = inputs.hashgen.sample(key, x, ref.size) if ref.size < x.size else x.reshape(-1)
        e = np.abs(mine - ref).max() / max(np.abs(ref).max(), 1e-30)
        self.note(kind, e < tol, key, f"error {e:.2e}")
        mean, rms = self.get(key + ".stat")
        self.note(kind, max(abs(x.mean() - mean), abs(np.sqrt((x * x).mean()) - rms)) <= tol * rms, key, "stat")

    def masks(self, kind, key, mine, my_tie, real=None):
        """Rows not marked as ties must be equal in the first `real` columns and keep as many of the others (equal padded
        blocks: which of them is nobody's business). Marked rows may differ by one in number."""
        ref, tie = self.bits(key), self.get(key + ".tie").astype(bool)
        differ = (ref != mine)[..., :real].sum(-1)
        number = np.abs(ref.sum(-1) - mine.sum(-1))
        wrong = (differ > 0) | (number > 0)
        self.note(kind, not wrong[~tie].any(), key, f"{int(wrong[~tie].sum())} rows differ")
        self.note(kind + " (marked rows)", (number <= 1)[tie].all(), key)
        self.note(kind + " (marks)", (tie >= my_tie).all(), key)


def check_xattention(chk, case, q, k, layouts, cases):
    n, heads = case["n"], case["heads"]
    sets = thresholds(cases, heads)
    for stride, block, chunk in layouts:
        pre = f"{case['name']}/s{stride}b{block}c{chunk}"
        length, nb = int(chk.get(pre + "/length")[0]), -(-n // block)
        if chunk == 0:  # the published rule
            up = 1 << (n - 1).bit_length()
            chunk = max(min(max(2048, up), (1 << 28) // up), 2048)
        chk.note("xattention padded length", length == -(-n // chunk) * chunk, pre)
        score = xattn_scores(q, k, stride, block, length)
        chk.floats("xattention scores", pre + "/score", score, 2e-5)
        for label, tau in sets:
            chk.masks("xattention masks", f"{pre}/mask/{label}", xattn_mask(score, tau), xattn_ties(score, tau, nb), nb)
        if length > n:  # written by make_masks.py with this file's functions: shows only that they still agree
            clean = xattn_scores(q, k, stride, block, length, True)[..., :nb]
            chk.floats("ours, padding masked: scores", pre + "/masked/score", clean, 2e-5)
            for label, tau in sets:
                chk.masks("ours, padding masked: masks", f"{pre}/masked/mask/{label}", xattn_mask(clean, tau, False),
                          xattn_ties(clean, tau, nb), nb)


def thresholds(cases, heads):
    """(name in the key, value) of every threshold: one number, and one per head."""
    sets = [(f"{t:g}", t) for t in cases["thresholds"]]
    return sets + ([("heads", cases["per_head"][:heads])] if heads > 1 else [])


def check_rows(chk, rows, prefix_of_key, select):
    """Selection alone, on exact numbers: rows of integers whose sum is a power of two (or 0). The sort's order of equal
    values is left open: number and sum of the kept entries."""
    value = np.asarray(rows["values"], np.float64)
    for key in [key for key in chk.t if key.startswith(prefix_of_key) and not key.endswith((".shape", ".tie", ".density"))]:
        mask = chk.bits(key).reshape(value.shape)
        chk.get(key + ".tie")
        mine = select(value, key)
        same = (mask.sum(-1) == mine.sum(-1)) & ((mask * value).sum(-1) == (mine * value).sum(-1))
        chk.note("rows", same.all(), key)


def start(run, case, x, which):
    k = run["qc" if which == "q" else "kc"]
    tokens = inputs.init_tokens(case, which, k, run["salt_" + which])
    if which == "k":
        for j in run.get("stale_k", []):
            tokens[:, j] = -1
    return tokens, inputs.init_centroids(case, x, tokens, run.get("stale", 0))


def check_svg(chk, case, run, q, k, cases):
    name = run["name"]
    for it in cases["iterations"]:
        got = {}
        for which, x in (("q", q), ("k", k)):
            tokens, init = start(run, case, x, which)
            chk.note("svg2 initial tokens", (chk.get(f"{name}/init_{which}") == tokens).all(), name)
            label, c, size, rounds, margin, _ = kmeans(x, init, it)
            pre = f"{name}/it{it}/{which}"
            ref = chk.get(pre + "_label").astype(np.int64)
            chk.note("svg2 labels", (ref == label).all(), pre, f"{int((ref != label).sum())} differ, margin {margin:.1e}")
            chk.note("svg2 sizes", (chk.get(pre + "_size") == size).all(), pre)
            if it:
                chk.note("svg2 rounds", int(chk.get(pre + "_rounds")[0]) == rounds, pre)
                chk.floats("svg2 centroids", pre + "_centroid", c, 2e-5)
            if pre + "_order" in chk.t:  # any order within a cluster: their sort is not a stable one
                order = chk.get(pre + "_order")
                one = (np.sort(order, -1) == np.arange(case["n"])).all()
                chk.note("svg2 order", one and (np.diff(np.take_along_axis(label, order, 1), axis=-1) >= 0).all(), pre)
            got[which] = label, c, size
        if it < 2:
            continue
        prob = cluster_probs(got["q"][1], got["k"][1], got["k"][2])
        chk.floats("svg2 cluster scores", f"{name}/it{it}/prob", prob, 1e-4)
        for ratio in cases["min_ratios"]:
            for label, p in thresholds(cases, case["heads"]):
                key = f"{name}/it{it}/map/p{label}r{ratio:g}"
                chk.masks("svg2 maps", key, *svg_mask(prob, p, ratio))
                d = density(chk.bits(key), got["q"][2], got["k"][2])
                chk.note("svg2 density", np.abs(d - chk.get(key + ".density")).max() < 1e-6, key)
        if it == 2 and "attend" in run:
            mask = chk.bits(f"{name}/it2/map/p{run['attend']:g}r0")
            v = inputs.side(case, "v")
            chk.floats("svg2 attention", f"{name}/it2/out", attend(q, k, v, mask, got["q"][0], got["k"][0]), 1e-5)


def full(case):
    """Missing coefficients are 0."""
    zero = {"smooth": 0, "proto": 0, "sink": 0, "noise_q": 0, "noise_k": 0}
    return {**case, "mix": [{**zero, **m} for m in case["mix"]]}


def main():
    with open(os.path.join(HERE, "cases.json")) as f:
        cases = json.load(f)
    with open(os.path.join(HERE, "data", "manifest.json")) as f:
        manifest = json.load(f)
    bad = []
    data = {c["name"]: full(c) for c in cases["inputs"]}
    made = {name: {s: inputs.side(c, s) for s in "qk"} for name, c in data.items()}
    for name, sides in made.items():
        for s, x in sides.items():
            if inputs.checksum(x) != manifest["checksums"][f"{name}/{s}"]:
                bad.append(f"input {name}/{s} has another checksum")

    def report(what, chk):
        print(what)
        for kind, (good, wrong) in chk.done.items():
            print(f"  {kind}: {good} as expected, {wrong} not")
        rest = set(chk.t) - chk.seen
        if rest:
            chk.bad.append(f"{len(rest)} tensors never looked at: {sorted(rest)[:5]}")
        bad.extend(f"{what}: {line}" for line in chk.bad)

    chk = Checker(os.path.join(HERE, "data", "xattention.safetensors"))
    for name, layouts in cases["xattention"]["layouts"].items():
        check_xattention(chk, data[name], made[name]["q"], made[name]["k"], layouts, cases["xattention"])
    check_rows(chk, cases["rows"], "rows/mask/", lambda v, key: xattn_mask(v[None], float(key.split("/")[-1]))[0])
    report("xattention", chk)

    chk = Checker(os.path.join(HERE, "data", "svg2.safetensors"))
    for run in cases["svg2"]["runs"]:
        check_svg(chk, data[run["input"]], run, made[run["input"]]["q"], made[run["input"]]["k"], cases["svg2"])

    def svg_rows(v, key):
        p, ratio = key.split("/p")[-1].split("r")
        return svg_mask((v / np.maximum(v.sum(-1, keepdims=True), 1e-12))[None], float(p), float(ratio))[0][0]

    check_rows(chk, cases["rows"], "rows/map/", svg_rows)
    report("svg2", chk)

    if "demo" in manifest:
        from safetensors import safe_open

        chk, d = Checker(os.path.join(HERE, "data", "demo.safetensors")), manifest["demo"]
        with safe_open(os.path.join(HERE, "data", "demo_qk.safetensors"), "pt") as f:
            q, k = (f.get_tensor(s).float().numpy() for s in "qk")
        check_xattention(chk, d["case"], q, k, cases["xattention"]["demo_layouts"], cases["xattention"])
        check_svg(chk, d["case"], d["run"], q, k, cases["svg2"])
        report("demo", chk)
    for line in bad:
        print("WRONG", line)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

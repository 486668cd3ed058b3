"""Regenerates tests/golden/masks/data by running the published code of XAttention and SVG2 on the CPU. See README.md.

    python make_masks.py --xattention DIR --svg DIR [--qk FILE.safetensors [--qk-heads 0,2]]

Both folders are checkouts of the repositories; nothing of them is copied here, only called. What is patched so that
the code runs without a GPU is in `published` below and, in words, in README.md.
"""
import argparse
import contextlib
import datetime
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import types

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels run as numpy, one program after another
sys.dont_write_bytecode = True        # nothing is written into the checkouts

import numpy as np  # noqa: E402
import torch  # noqa: E402

import check_masks  # noqa: E402
import inputs  # noqa: E402
from oracle.store import Store  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "data")
LIMIT = 4096   # values of a float tensor kept; the rest is in .stat
MARGIN = 5e-6  # k-means inputs are chosen so that no label is closer than this to a tie


# ---- the published modules ----------------------------------------------------------------------------------------
class WithoutAsserts(importlib.machinery.SourceFileLoader):
    """The launchers assert that tensors are on a GPU; nothing else is asserted on the paths used here."""

    def source_to_code(self, data, path, *, _optimize=-1):
        return compile(data, path, "exec", dont_inherit=True, optimize=1)


def stub(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


class Published:
    """Both repositories, imported; `patches` says what was changed to run them without a GPU."""

    def __init__(self, xattention_dir, svg_dir):
        stub("block_sparse_attn", block_sparse_attn_func=self.catch_mask)
        for name in ("flashinfer", "cuvs", "cuvs.cluster"):
            stub(name)
        stub("cuvs.cluster.kmeans", KMeansParams=None, fit=None)
        sys.path.insert(0, xattention_dir)
        import xattn.src.Xattention as xattention

        pkg = types.ModuleType("svg")  # the package without its heavy parts
        pkg.__path__ = [os.path.join(svg_dir, "svg")]
        sys.modules["svg"] = pkg
        file = os.path.join(svg_dir, "svg", "kmeans_utils.py")
        spec = importlib.util.spec_from_loader("svg.kmeans_utils", WithoutAsserts("svg.kmeans_utils", file))
        km = importlib.util.module_from_spec(spec)
        sys.modules["svg.kmeans_utils"] = km
        spec.loader.exec_module(km)
        kernel = km._euclid_assign_kernel
        kernel.configs = kernel.configs[:1]  # no tuning: it would time kernels on a GPU

        self.xattention, self.kmeans = xattention, km
        self.caught = {}
        self.prob = None
        estimate, softmax = xattention.xattn_estimate, km.weighted_softmax

        def record_estimate(*args, **kw):
            self.caught["sum"], self.caught["full"] = ret = estimate(*args, **kw)
            self.caught["chunk"] = kw["chunk_size"]
            return ret

        def record_softmax(scores, weights):
            self.prob = softmax(scores, weights)
            return self.prob

        self.estimate = estimate
        xattention.xattn_estimate = record_estimate
        km.weighted_softmax = record_softmax

    patches = {
        "x-attention": [
            "torch.Tensor.to('cuda') returns the tensor itself",
            "module block_sparse_attn replaced by a function that keeps the mask it is given and returns zeros",
            "xattn_estimate wrapped to keep its results; arguments and results unchanged",
            "use_triton=False (PyTorch path); the Triton path was compared with it in Triton's interpreter, where the device "
            "name is answered with '100'",
            "float64 judge only: F.softmax ignores dtype=float32",
        ],
        "Sparse-VideoGen": [
            "TRITON_INTERPRET=1: its Triton kernels run in Triton's interpreter (tl.dot is a float32 product, no TF32)",
            "assert statements of svg/kmeans_utils.py dropped when compiling (they demand CUDA tensors)",
            "_euclid_assign_kernel keeps its first tuning configuration only (tile sizes and warps)",
            "modules flashinfer and cuvs replaced by empty ones; package svg without its __init__",
            "weighted_softmax wrapped to keep its result",
        ],
    }

    def catch_mask(self, q, k, v, q_lens, k_lens, kinds, streaming, mask, *rest, **kw):
        self.caught["mask"] = mask
        return torch.zeros_like(q)

    @contextlib.contextmanager
    def on_cpu(self, double=False):
        keep_to, keep_f = torch.Tensor.to, self.xattention.F
        torch.Tensor.to = lambda t, *a, **kw: t if a and isinstance(a[0], str) and a[0] == "cuda" else keep_to(t, *a, **kw)
        if double:
            f = types.SimpleNamespace(**{n: getattr(keep_f, n) for n in ("pad", "dropout")})
            f.softmax = lambda x, dim, dtype: keep_f.softmax(x, dim=dim)
            self.xattention.F = f
        try:
            yield
        finally:
            torch.Tensor.to, self.xattention.F = keep_to, keep_f

    def xattn(self, q, k, stride, block, chunk, tau, double=False, triton=False):
        """attn_sum, mask over padded blocks, mask as given to the kernel, chunk: through Xattention_prefill where it allows."""
        q, k = torch.from_numpy(q)[None], torch.from_numpy(k)[None]
        if double:
            q, k = q.double(), k.double()
        if isinstance(tau, list):
            tau = torch.tensor(tau, dtype=torch.float64)
        with self.on_cpu(double):
            if block == 128 and (chunk or not triton):
                self.xattention.Xattention_prefill(q, k, torch.zeros_like(k), stride, threshold=tau, block_size=block,
                                                   use_triton=triton, causal=False, chunk_size=chunk or None)
                c = self.caught
                return c["sum"][0].numpy(), c["full"][0].numpy(), c["mask"][0].numpy(), c["chunk"]
            score, mask = self.estimate(q, k, block, stride, threshold=tau, chunk_size=chunk, use_triton=triton, causal=False)
        nb = -(-q.shape[2] // block)
        return score[0].numpy(), mask[0].numpy(), mask[0, :, :nb, :nb].numpy(), chunk

    def kmeans_run(self, x, init, iterations):
        """Labels, centroids, sizes, rounds. Their loop does not allow 0 iterations: then only their assignment runs."""
        x, init = torch.from_numpy(x), torch.from_numpy(init)
        if iterations == 0:
            label = self.kmeans.euclid_assign_triton(x, init, (x**2).sum(-1))
            return label.numpy(), None, np.stack([np.bincount(r, minlength=init.shape[1]) for r in label.numpy()]), 0
        label, c, size, rounds = self.kmeans.batch_kmeans_Euclid(x, init.shape[1], iterations, init_centroids=init)
        return label.numpy(), c.numpy(), size.numpy(), rounds

    def cluster_map(self, cq, ck, size_q, size_k, p, ratio, dtype=torch.float32):
        if isinstance(p, list):
            p = torch.tensor(p, dtype=dtype).view(1, -1, 1, 1)
        t = [torch.from_numpy(a)[None] for a in (cq, ck, size_q, size_k)]
        m = self.kmeans.identify_dynamic_map(t[0].to(dtype), t[1].to(dtype), t[2], t[3], p, min_kc_ratio=ratio)
        density = self.kmeans.density_calculation(m, t[2], t[3])
        return m[0].numpy(), self.prob[0].float().numpy(), density[0].numpy()


# ---- storing ------------------------------------------------------------------------------------------------------
def add_mask(store, key, mask, tie):
    """Bits, least significant first, rows padded to whole bytes; a byte per row says whether rounding may decide it."""
    store.add_plain(key, np.packbits(mask, axis=-1, bitorder="little"), np.uint8)
    store.add_plain(key + ".shape", mask.shape, np.int32)
    store.add_plain(key + ".tie", tie, np.uint8)


class Facts(dict):
    def most(self, key, value):
        self[key] = max(self.get(key, 0.0), float(value))

    def count(self, key, value):
        self[key] = self.get(key, 0) + int(value)


def make_xattention(pub, store, facts, case, q, k, layouts, cases):
    n, name = case["n"], case["name"]
    flat = name.startswith("flat")  # equal scores: kept out of the counts
    sets = check_masks.thresholds(cases, case["heads"])
    for stride, block, chunk in layouts:
        pre = f"{name}/s{stride}b{block}c{chunk}"
        nb = -(-n // block)
        length, densities = 0, []
        for label, tau in sets:
            score, mask, used, c = pub.xattn(q, k, stride, block, chunk, tau)
            score64, mask64, _, _ = pub.xattn(q, k, stride, block, chunk, tau, double=True)
            if not length:
                length = score.shape[2] * block
                store.add_plain(pre + "/length", [length], np.int32)
                store.add(pre + "/score", score[:, :nb])
                facts.most("score_error_float32", np.abs(score[:, :nb] - score64[:, :nb]).max() / score64.max())
                facts.count("padded_rows_not_zero", np.count_nonzero(score[:, nb:]))
            facts.count("slices_that_are_not_the_first_blocks", (used != mask[:, :nb, :nb]).any())
            ties = check_masks.xattn_ties(score64[:, :nb].astype(np.float64), tau, nb)
            differ = (mask != mask64)[:, :nb, :nb].any(-1)
            ties |= differ
            add_mask(store, f"{pre}/mask/{label}", mask[:, :nb], ties)
            if not flat:
                facts.count("rows", ties.size)
                facts.count("rows_marked_as_ties", ties.sum())
                facts.count("rows_where_float32_and_float64_differ", differ.sum())
                bare = check_masks.xattn_mask(score64[:, :nb], tau, block0=False)
                facts.count("rows_with_block_0_only_by_the_artefact", (~bare[..., 0]).sum())
                facts.count("rows_that_keep_padded_blocks", mask[:, :nb, nb:].any(-1).sum())
            densities.append(round(float(used.mean()), 4))
        facts.setdefault("density", {})[pre] = densities
        if not flat:
            one = pub.xattn(q, k, stride, block, chunk, 1.0)[2]
            facts.count("rows_not_full_at_tau_1", (~one.all(-1)).sum())
            half = pub_bfloat16(pub, q, k, stride, block, chunk, 0.9)
            ref = pub.xattn(q, k, stride, block, chunk, 0.9)[2]
            facts.count("rows_at_tau_0.9", ref.shape[0] * nb)
            facts.count("rows_at_tau_0.9_where_bfloat16_differs", (half != ref).any(-1).sum())
        if length > n:
            clean = check_masks.xattn_scores(q, k, stride, block, length, True)[..., :nb]
            store.add(pre + "/masked/score", clean)
            for label, tau in sets:
                add_mask(store, f"{pre}/masked/mask/{label}", check_masks.xattn_mask(clean, tau, False),
                         check_masks.xattn_ties(clean, tau, nb))


def pub_bfloat16(pub, q, k, stride, block, chunk, tau):
    """The mask with the dtype of their runs, for the record only."""
    tq, tk = torch.from_numpy(q)[None].bfloat16(), torch.from_numpy(k)[None].bfloat16()
    with pub.on_cpu():
        if chunk == 0:
            pub.xattention.Xattention_prefill(tq, tk, torch.zeros_like(tk), stride, threshold=tau, block_size=block,
                                              use_triton=False, causal=False)
            return pub.caught["mask"][0].numpy()
        mask = pub.estimate(tq, tk, block, stride, threshold=tau, chunk_size=chunk, use_triton=False, causal=False)[1]
    nb = -(-q.shape[1] // block)
    return mask[0, :, :nb, :nb].numpy()


def compare_triton_path(pub, facts, case, q, k):
    """Their Triton kernels (in the interpreter) against their PyTorch path."""
    keep = torch.cuda.get_device_properties, torch.cuda.current_device
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(name="100")
    torch.cuda.current_device = lambda: 0
    try:
        for stride in (8, 16):
            a, ma, _, _ = pub.xattn(q, k, stride, 128, 2048, 0.9)
            b, mb, _, _ = pub.xattn(q, k, stride, 128, 2048, 0.9, triton=True)
            facts.most("triton_against_pytorch_score_error", np.abs(a - b).max() / a.max())
            facts.count("triton_against_pytorch_rows", ma.shape[0] * ma.shape[1])
            facts.count("triton_against_pytorch_rows_that_differ", (ma != mb).any(-1).sum())
    finally:
        torch.cuda.get_device_properties, torch.cuda.current_device = keep


def make_svg(pub, store, facts, case, run, q, k, cases):
    name = run["name"]
    kept = {}
    for it in cases["iterations"]:
        for which, x in (("q", q), ("k", k)):
            tokens, init = check_masks.start(run, case, x, which)
            if it == cases["iterations"][0]:
                store.add_plain(f"{name}/init_{which}", tokens, np.int32)
            label, c, size, rounds = pub.kmeans_run(x, init, it)
            margin, shift = check_masks.kmeans(x, init, it)[4:]
            if not run.get("repeats"):
                if margin < MARGIN or shift < 0.1:
                    facts.setdefault("margins_too_small", []).append(f"{name} {which} it{it} {margin:.1e} {shift:.2f}")
                facts["least_label_margin"] = min(facts.get("least_label_margin", 1.0), float(margin))
            pre = f"{name}/it{it}/{which}"
            store.add_plain(pre + "_label", label, np.uint8)
            store.add_plain(pre + "_size", size, np.int32)
            facts.count("empty_clusters", (size == 0).sum())
            if it:
                store.add_plain(pre + "_rounds", [rounds], np.int32)
                store.add(pre + "_centroid", c)
                facts.count("runs_stopped_early", rounds < it)
            kept[which] = label, c, size
            if it == 2 and x.shape[1] <= 600:
                order = pub.kmeans.permute_tensor_by_labels(torch.from_numpy(x), torch.from_numpy(label), 1)[1].numpy()
                facts.count("orders_that_are_not_stable", (order != np.argsort(label, -1, kind="stable")).any())
                store.add_plain(pre + "_order", order, np.int32)
        if it < 2:
            continue
        (lq, cq, sq), (lk, ck, sk) = kept["q"], kept["k"]
        stored = False
        for ratio in cases["min_ratios"]:
            for label, p in check_masks.thresholds(cases, case["heads"]):
                mask, prob, density = pub.cluster_map(cq, ck, sq, sk, p, ratio)
                if not stored:
                    store.add(f"{name}/it{it}/prob", prob)
                    facts.most("svg_rows_sum_to_one_error", np.abs(prob.sum(-1) - 1).max() if not run.get("stale") else 0)
                    stored = True
                mine, tie = check_masks.svg_mask(check_masks.cluster_probs(cq, ck, sk), p, ratio)
                differ = (mine != mask).any(-1)
                key = f"{name}/it{it}/map/p{label}r{ratio:g}"
                add_mask(store, key, mask, tie)
                store.add_plain(key + ".density", density, np.float32)
                facts.count("rows", tie.size)
                facts.count("rows_marked_as_ties", tie.sum())
                facts.count("unmarked_rows_that_differ_from_float64", (differ & ~tie).sum())
                facts.setdefault("density", {})[key] = [round(float(d), 4) for d in density]
                if label == "0.9" and ratio == 0.1:
                    half = pub.cluster_map(cq, ck, sq, sk, p, ratio, torch.bfloat16)[0]
                    facts.count("rows_at_p_0.9", tie.size)
                    facts.count("rows_at_p_0.9_where_bfloat16_scores_differ", (half != mask).any(-1).sum())
        one = pub.cluster_map(cq, ck, sq, sk, 1.0, 0)[0]
        facts.count("rows_not_full_at_p_1", (~one[np.broadcast_to((sq > 0)[..., None], one.shape)]
                                            .reshape(-1, one.shape[-1]).all(-1)).sum())
        if it == 2 and "attend" in run:
            mask, _, _ = pub.cluster_map(cq, ck, sq, sk, run["attend"], 0)
            t = [torch.from_numpy(a) for a in (q, k, inputs.side(case, "v"))]
            permute = pub.kmeans.permute_tensor_by_labels
            qp, order = permute(t[0], torch.from_numpy(lq), 1)
            kp, vp = (permute(a, torch.from_numpy(lk), 1)[0] for a in t[1:])
            out = pub.kmeans.dynamic_block_sparse_fwd_torch(qp[None], kp[None], vp[None], torch.from_numpy(mask)[None],
                                                            torch.from_numpy(sq)[None], torch.from_numpy(sk)[None])
            store.add(f"{name}/it2/out", pub.kmeans.apply_inverse_permutation(out[0], order, 1))


def make_rows(pub, xattn, svg, rows):
    """Their two selections on rows of exact numbers (cases.json, "rows"): what happens at equality, with zeros, with ties."""
    value = np.asarray(rows["values"], np.float32)
    count, n = value.shape
    none = np.zeros(count, bool)
    zero = np.zeros((count, 1, 64), np.float32), np.zeros((count, n, 64), np.float32)
    for t in rows["thresholds"]:
        mask = pub.xattention.find_blocks_chunked(torch.from_numpy(value)[None, None], 0, t, None, decoding=False,
                                                  mode="prefill", causal=False)
        add_mask(xattn, f"rows/mask/{t:g}", mask[0, 0].numpy(), none)
        for ratio in rows["min_ratios"]:
            size = value.astype(np.int32)  # centroids of zeros: the score of a cluster is its share of the tokens
            mask = pub.cluster_map(*zero, np.ones((count, 1), np.int32), size, t, ratio)[0]
            add_mask(svg, f"rows/map/p{t:g}r{ratio:g}", mask, none[:, None])


# ---- main ---------------------------------------------------------------------------------------------------------
def commit(folder):
    """Of a git checkout; a plain export carries its commit in the file COMMIT."""
    if os.path.exists(os.path.join(folder, "COMMIT")):
        with open(os.path.join(folder, "COMMIT")) as f:
            return f.read().strip()
    return subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--xattention", required=True, help="checkout of mit-han-lab/x-attention")
    p.add_argument("--svg", required=True, help="checkout of svg-project/Sparse-VideoGen")
    p.add_argument("--qk", help="tensors q and k [heads, N, 128] of the demo model: makes data/demo*.safetensors, only these")
    p.add_argument("--qk-heads", help="comma separated heads of that file; default all")
    args = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(DATA, exist_ok=True)
    with open(os.path.join(HERE, "cases.json")) as f:
        cases = json.load(f)
    path = os.path.join(DATA, "manifest.json")
    manifest = {}
    if os.path.exists(path):
        with open(path) as f:
            manifest = json.load(f)
    pub = Published(os.path.abspath(args.xattention), os.path.abspath(args.svg))
    about = {
        "made": datetime.date.today().isoformat(),
        "commits": {"mit-han-lab/x-attention": commit(args.xattention), "svg-project/Sparse-VideoGen": commit(args.svg)},
        "python": platform.python_version(),
        "packages": {n: importlib.metadata.version(n) for n in ("torch", "triton", "numpy", "safetensors")},
    }

    if args.qk:
        manifest["demo"] = {**about, **demo(pub, args, cases)}
    else:
        demo_entry = manifest.get("demo")
        manifest = {"by": "tests/golden/masks/make_masks.py", **about, "patches": pub.patches}
        data = {c["name"]: check_masks.full(c) for c in cases["inputs"]}
        made = {name: {s: inputs.side(c, s) for s in "qkv"} for name, c in data.items()}
        manifest["checksums"] = {f"{n}/{s}": inputs.checksum(x) for n, sides in made.items() for s, x in sides.items()}

        start = time.time()
        store, facts, svg_store = Store(LIMIT), Facts(), Store(LIMIT)
        make_rows(pub, store, svg_store, cases["rows"])
        for name, layouts in cases["xattention"]["layouts"].items():
            make_xattention(pub, store, facts, data[name], made[name]["q"], made[name]["k"], layouts, cases["xattention"])
            print(f"xattention {name} {time.time() - start:.0f} s", flush=True)
        for name in ("rand256", "scene520"):
            compare_triton_path(pub, facts, data[name], made[name]["q"], made[name]["k"])
            print(f"xattention triton {name} {time.time() - start:.0f} s", flush=True)
        store.write(os.path.join(DATA, "xattention.safetensors"), "block scores and masks of mit-han-lab/x-attention")
        manifest["xattention"] = facts

        store, facts = svg_store, Facts()
        for run in cases["svg2"]["runs"]:
            x = made[run["input"]]
            make_svg(pub, store, facts, data[run["input"]], run, x["q"], x["k"], cases["svg2"])
            print(f"svg2 {run['name']} {time.time() - start:.0f} s", flush=True)
        store.write(os.path.join(DATA, "svg2.safetensors"), "clusters and maps of svg-project/Sparse-VideoGen")
        manifest["svg2"] = facts
        if demo_entry:
            manifest["demo"] = demo_entry
    with open(path, "w") as f:
        json.dump(manifest, f, indent=1)
        f.write("\n")
    os.chmod(path, 0o644)


def demo(pub, args, cases):
    """Goldens on q and k of a real model; they cannot be regenerated, so they are kept too, rounded to bfloat16."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(args.qk, "pt") as f:
        t = {s: f.get_tensor(s).float() for s in "qk"}
    heads = [int(h) for h in args.qk_heads.split(",")] if args.qk_heads else list(range(t["q"].shape[0]))
    t = {s: x[heads].to(torch.bfloat16).contiguous() for s, x in t.items()}
    path = os.path.join(DATA, "demo_qk.safetensors")
    save_file(t, path, metadata={"about": f"heads {heads} of {os.path.basename(args.qk)}"})
    os.chmod(path, 0o644)
    q, k = (t[s].float().numpy() for s in "qk")
    case = {"name": "demo", "heads": len(heads), "n": q.shape[1], "d": q.shape[2]}
    store, fx, fs = Store(LIMIT), Facts(), Facts()
    make_xattention(pub, store, fx, case, q, k, cases["xattention"]["demo_layouts"], cases["xattention"])
    run = {"name": "demo", "input": "demo", **cases["svg2"]["demo"]}
    for which, x in (("q", q), ("k", k)):  # of a few sets of initial tokens, the one farthest from a tie

        def margin(salt):
            init = check_masks.start({**run, "salt_" + which: salt}, case, x, which)[1]
            return min(check_masks.kmeans(x, init, it)[4] for it in cases["svg2"]["iterations"])

        run["salt_" + which] = max(range(20), key=margin)
    make_svg(pub, store, fs, case, run, q, k, cases["svg2"])
    store.write(os.path.join(DATA, "demo.safetensors"), "block masks of both methods on demo_qk.safetensors")
    return {"case": case, "run": run, "xattention": fx, "svg2": fs}


if __name__ == "__main__":
    main()

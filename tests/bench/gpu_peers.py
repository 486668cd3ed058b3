"""What others reach on this GPU, to be run beside our own figures: ceilings, attention, products, Wan2.1's modules.

    python gpu_peers.py OUT.json [PART...] [--mask FILE] [--scale X]

Parts, in the order of a run without names, with the seconds after which each is given up (--scale multiplies them):
PARTS
Prints medians as they come and a short table at the end; OUT.json holds everything, and clocks and power of each part.
Random data and weights. Masks of `flex`, `fa4` and `flashinfer` are bit for bit those of tests/bench/cuda_attention (blocks
of 128, clusters).
--mask FILE: a safetensors file with `mask`, uint8 [heads, rows, columns], one byte a block of 128 tokens, for `mask`.
--device cpu runs toy sizes, to try the script without a GPU; its figures mean nothing.
Needs torch; whole modules need diffusers, `fa4` flash-attn-4, `flashinfer` flashinfer-python. All parts: about 4 minutes of an H200.
"""
import argparse
import signal
import sys
import time
import traceback

import numpy as np
import torch
import torch.nn.functional as F

import peers

BLOCK, DIM = 128, 128
TOKENS = {"480p": 32760, "720p": 75600}


class Context:
    def __init__(self, args, results):
        self.device, self.toy, self.mask_file, self.results = args.device, args.device == "cpu", args.mask, results
        self.part, self.deadline = "", 0.0

    def tokens(self, size):
        return TOKENS[size] // 128 if self.toy else TOKENS[size]

    def random(self, *shape):
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def measure(self, what, fn, flops=0, moved=0, repeats=5, warm=2, **more):
        """One row: milliseconds, and TFLOP/s or GB/s."""
        ms, least, most = peers.median_ms(fn, self.device, *((1, 0) if self.toy else (repeats, warm)))
        rate = {"TFLOP/s": round(flops / ms / 1e9, 1)} if flops else {"GB/s": round(moved / ms / 1e6)} if moved else {}
        self.results.add(self.part, what, ms=ms, least=least, most=most, **rate, **more)
        return ms

    def attempt(self, what, fn):
        """A measurement that may fail without ending its part."""
        try:
            fn()
        except Exception as failure:  # whatever a library raises is a result here
            if time.perf_counter() > self.deadline:  # libraries wrap the TimeoutError in exceptions of their own
                raise TimeoutError("its time is over") from failure
            self.results.add(self.part, what, failed=repr(failure)[:300])


# ---- parts ------------------------------------------------------------------------------------------------------------
def ceilings(c):
    n = 1 << (20 if c.toy else 30)
    x = c.random(n)
    y = torch.empty_like(x)
    c.measure("copy, read + written", lambda: y.copy_(x), moved=4 * n, repeats=10)
    del x, y
    n = 256 if c.toy else 8192
    a, b = c.random(n, n), c.random(n, n)
    c.measure(f"bf16 product {n}^3", lambda: a @ b, flops=2 * n**3, repeats=20)


def qkv(c, heads, tokens):
    return [c.random(1, heads, tokens, DIM) for _ in range(3)]


def dense(c):
    for heads, size in ((12, "480p"), (12, "720p"), (40, "720p")):
        n = c.tokens(size)
        q, k, v = qkv(c, heads, n)
        with peers.cudnn_attention(c.device):
            c.attempt(f"cuDNN {heads} x {n}", lambda: c.measure(
                f"cuDNN {heads} x {n}", lambda: F.scaled_dot_product_attention(q, k, v), flops=4 * n * n * DIM * heads))


def hash64(x):
    """hs_hash64 of engine/base.c (splitmix64's finaliser)."""
    x = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_mask(heads, rows, cols, density):
    """bool [heads, rows, cols], as cuda_attention's `keeps` has it."""
    with np.errstate(over="ignore"):
        value = hash64(np.arange(heads * rows * cols, dtype=np.uint64)) % np.uint64(1000000)
    return (value.astype(np.float64) < density * 1e6).reshape(heads, rows, cols)


def bench_mask(heads, tokens, density):
    """The mask that cuda_attention uses at this size and density, for blocks of 128."""
    n = -(-tokens // BLOCK)
    return random_mask(heads, n, n, density)


def block_sizes(heads, tokens):
    """int [heads, blocks]; the last block is short."""
    n = -(-tokens // BLOCK)
    return np.tile(np.minimum(BLOCK, tokens - BLOCK * np.arange(n)), (heads, 1))


def cluster_sizes(heads, tokens, n, salt):
    """int [heads, n], as cuda_attention's `scatter` cuts them."""
    with np.errstate(over="ignore"):
        at = salt + np.arange(heads)[:, None] * n + np.arange(n)
        jitter = (hash64(at) % np.uint64(1000)).astype(np.float64) / 1000
    start = ((np.arange(n) + jitter - 0.5) * tokens / n).astype(np.int64)
    start[:, 0] = 0
    return np.diff(start, append=tokens, axis=1)


def kept_pairs(mask, rows, cols):
    """Token pairs of what is kept; rows, cols: sizes [heads, .]."""
    return float(np.einsum("hrc,hr,hc->", mask.astype(np.float64), rows.astype(np.float64), cols.astype(np.float64)))


def kept_in_blocks(mask, tokens):
    size = block_sizes(mask.shape[0], tokens)
    return kept_pairs(mask, size, size)


def block_lists(mask, device):
    """Per row of blocks: how many are kept, and which, first those."""
    kept = torch.from_numpy(mask).to(device)[None]
    number = kept.sum(-1).to(torch.int32)
    index = torch.argsort(kept.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    return number, index.contiguous()


def flex_mask(mask, tokens, device):
    from torch.nn.attention.flex_attention import BlockMask

    number, index = block_lists(mask, device)
    return BlockMask.from_kv_blocks(torch.zeros_like(number), index.clone(), number, index, BLOCK_SIZE=BLOCK,
                                    seq_lengths=(tokens, tokens), compute_q_blocks=False)


def flex_under(c, what, mask, tokens):
    from torch.nn.attention.flex_attention import flex_attention

    if not hasattr(c, "flex"):
        c.flex = torch.compile(flex_attention, dynamic=False)
    blocks = flex_mask(mask, tokens, c.device)
    q, k, v = qkv(c, mask.shape[0], tokens)
    c.measure(what, lambda: c.flex(q, k, v, block_mask=blocks), flops=4 * DIM * kept_in_blocks(mask, tokens),
              density=round(float(mask.mean()), 4))


def flex(c, size):
    n, heads = c.tokens(size), 12
    for density in (0.5, 0.3, 0.2, 0.1):
        what = f"flex {heads} x {n} blocks at {density}"
        c.attempt(what, lambda: flex_under(c, what, bench_mask(heads, n, density), n))


def mask(c):
    if not c.mask_file:
        return c.results.add(c.part, "not measured: no --mask FILE")
    from safetensors.numpy import load_file

    given = load_file(c.mask_file)["mask"].astype(bool)
    for size in TOKENS:  # one tile beside the other, as cuda_attention --masks does
        tokens = c.tokens(size)
        blocks = -(-tokens // BLOCK)
        heads, rows, cols = (np.arange(n) % m for n, m in zip((12, blocks, blocks), given.shape))
        flex_under(c, f"flex 12 x {tokens}, {c.mask_file.rsplit('/', 1)[-1]}", given[np.ix_(heads, rows, cols)], tokens)


def fa4(c):
    """FlashAttention 4 (CuTe DSL), dense and block-sparse."""
    try:
        from flash_attn.cute import flash_attn_func
        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    except ImportError as failure:
        return c.results.add(c.part, f"not measured: {failure}")
    heads = 12
    for size in TOKENS:
        n = c.tokens(size)
        q, k, v = (c.random(1, n, heads, DIM) for _ in range(3))
        what = f"FA4 {heads} x {n}"
        c.attempt(what, lambda: c.measure(what, lambda: flash_attn_func(q, k, v), flops=4 * n * n * DIM * heads))
        for density in (0.5, 0.3, 0.2, 0.1):
            what = f"FA4 {heads} x {n} blocks at {density}"

            def one():
                m = bench_mask(heads, n, density)
                number, index = block_lists(m, c.device)
                sparse = BlockSparseTensorsTorch(mask_block_cnt=torch.zeros_like(number), mask_block_idx=index.clone(),
                                                 full_block_cnt=number, full_block_idx=index, block_size=(BLOCK, BLOCK))
                c.measure(what, lambda: flash_attn_func(q, k, v, block_sparse_tensors=sparse),
                          flops=4 * DIM * kept_in_blocks(m, n), density=round(float(m.mean()), 4))

            c.attempt(what, one)


def listed_row(q, k, v, mask, rows, cols, r):
    """What the queries of row r of a head's mask should get, and which they are."""
    first = int(rows[:r].sum())
    at = slice(first, first + int(rows[r]))
    kept = torch.from_numpy(np.repeat(mask[r], cols)).to(q.device)
    p = torch.softmax(q[at].float() @ k[kept].float().T / DIM**0.5, -1)
    return at, p @ v[kept].float()


def flashinfer(c):
    """FlashInfer's attention over blocks of any size (FA3); tokens lie in the order of clusters already, and neither its
    plan nor its lists of keys are part of the time."""
    try:
        from flashinfer.sparse import VariableBlockSparseAttentionWrapper
    except ImportError as failure:
        return c.results.add(c.part, f"not measured: {failure}")
    if c.toy:
        return c.results.add(c.part, "not measured: needs a GPU")
    heads, most = 12, 280 << 20  # entries of its lists
    wrapper = VariableBlockSparseAttentionWrapper(torch.empty(128 << 20, dtype=torch.uint8, device=c.device), backend="fa3")
    wrapper.reset_workspace_buffer(wrapper._float_workspace_buffer, wrapper._int_workspace_buffer,
                                   torch.empty(most, dtype=torch.int32, device=c.device))
    for size in TOKENS:
        n = c.tokens(size)
        q, k, v = (c.random(heads, n, DIM) for _ in range(3))
        blocks = block_sizes(heads, n)
        clusters = cluster_sizes(heads, n, 300, 1), cluster_sizes(heads, n, 1000, 1000)
        for name, rows, cols in (("blocks", blocks, blocks), ("clusters", *clusters)):
            for density in (0.5, 0.3, 0.2, 0.1):
                what = f"FlashInfer {heads} x {n} {name} at {density}"

                def one():
                    m = random_mask(heads, rows.shape[1], cols.shape[1], density)
                    on_device = [torch.from_numpy(x).to(c.device) for x in (m, rows.astype(np.int32), cols.astype(np.int32))]
                    wrapper.plan(*on_device, heads, heads, DIM, q_data_type=torch.bfloat16)
                    h, r = heads - 1, rows.shape[1] // 2
                    at, want = listed_row(q[h], k[h], v[h], m[h], rows[h], cols[h], r)
                    error = (wrapper.run(q, k, v)[h, at].float() - want).norm() / want.norm()
                    if not error < 2e-2:
                        raise ValueError(f"wrong by {float(error):.2g}")
                    pairs = kept_pairs(m, rows, cols)
                    c.measure(what, lambda: wrapper.run(q, k, v), flops=4 * DIM * pairs,
                              density=round(pairs / (heads * float(n) * n), 4))

                c.attempt(what, one)


def linear(c):
    shapes = [("1.3B 480p", 32760, 1536, 8960), ("1.3B 720p", 75600, 1536, 8960), ("14B 720p", 75600, 5120, 13824)]
    for name, rows, d, ffn in shapes:
        if c.toy:
            rows, d, ffn = rows // 512, d // 16, ffn // 16
        for what, n_in, n_out in (("q, k, v", d, 3 * d), ("o", d, d), ("FFN up", d, ffn), ("FFN down", ffn, d)):
            x, w, b = c.random(rows, n_in), c.random(n_out, n_in), c.random(n_out)
            c.measure(f"F.linear {name} {what} {rows} x {n_in} x {n_out}", lambda: F.linear(x, w, b),
                      flops=2 * rows * n_in * n_out)


def layers(c):
    """The products of a whole forward one after the other, at the clocks that seconds of work leave."""
    for name, rows, d, ffn, count in (
        ("1.3B 480p", 32760, 1536, 8960, 30),
        ("1.3B 720p", 75600, 1536, 8960, 30),
        ("14B 720p", 75600, 5120, 13824, 40),
    ):
        if c.toy:
            rows, d, ffn, count = rows // 512, d // 16, ffn // 16, 2
        shapes = ((d, 3 * d), (d, d), (d, d), (d, d), (d, ffn), (ffn, d))  # q k v, out, cross q, cross out, up, down
        x = {n: c.random(rows, n) for n in (d, ffn)}
        w = [(n_in, c.random(n_out, n_in), c.random(n_out)) for n_in, n_out in shapes]

        def run():
            for _ in range(count):
                for n_in, weight, bias in w:
                    F.linear(x[n_in], weight, bias)

        c.measure(f"F.linear {name}, {count} layers", run, repeats=3, warm=1,
                  flops=2 * rows * count * sum(n_in * n_out for n_in, n_out in shapes))


def forward(c, name, size):
    model = peers.transformer(name, c.device, c.toy)
    shape = peers.latent_shape((64, 64) if c.toy else peers.SIZES[size], 9 if c.toy else peers.FRAMES)
    x, text = c.random(*shape), c.random(1, 512, model.config.text_dim)
    step = torch.tensor([500], device=c.device)
    long = name == "14B"
    peers.reset_peak(c.device)
    run = lambda: model(x, step, text, return_dict=False)
    with peers.cudnn_attention(c.device):
        c.measure(f"diffusers {name} {size} forward, eager", run, repeats=1 if long else 3, warm=1)
        c.results.add(c.part, f"diffusers {name} {size} memory", weights_GiB=peers.weights_gib(model),
                      peak_GiB=peers.peak_gib(c.device))
        torch._dynamo.reset()
        model.compile_repeated_blocks(dynamic=False)
        start = time.perf_counter()
        run()
        peers.synchronize(c.device)
        first = time.perf_counter() - start
        c.measure(f"diffusers {name} {size} forward, compiled", run, repeats=2 if long else 3, warm=0 if long else 1,
                  first_s=round(first, 1))


def vae(c):
    model = peers.vae(c.device, torch.bfloat16, c.toy)
    for size, pixels in peers.SIZES.items():
        z = c.random(*peers.latent_shape((64, 64) if c.toy else pixels, 9 if c.toy else peers.FRAMES))
        peers.reset_peak(c.device)
        c.attempt(f"diffusers VAE decode {size}", lambda: c.measure(
            f"diffusers VAE decode {size} x 81, bf16", lambda: model.decode(z, return_dict=False), repeats=2, warm=1))
        c.results.add(c.part, f"diffusers VAE decode {size} memory", peak_GiB=peers.peak_gib(c.device))


PARTS = {  # name: what it does, seconds
    "ceilings": (ceilings, 20),
    "dense": (dense, 20),
    "flex-480p": (lambda c: flex(c, "480p"), 60),
    "flex-720p": (lambda c: flex(c, "720p"), 60),
    "mask": (mask, 60),
    "layers": (layers, 60),
    "linear": (linear, 20),
    "13-480p": (lambda c: forward(c, "1.3B", "480p"), 60),
    "13-720p": (lambda c: forward(c, "1.3B", "720p"), 60),
    "vae": (vae, 60),
    "14-720p": (lambda c: forward(c, "14B", "720p"), 120),
    "fa4": (fa4, 120),
    "flashinfer": (flashinfer, 120),
}


def give_up(_signal, _frame):
    raise TimeoutError("its time is over")


def run_part(name, c, clocks, scale):
    fn, limit = PARTS[name]
    limit, failure, start = limit * scale, None, time.perf_counter()
    c.part, c.deadline = name, start + limit
    clocks.part()
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, limit, 5)  # again and again, should somebody swallow the first
    try:
        with torch.no_grad():
            fn(c)
    except Exception as e:  # one part that fails does not take the others with it
        failure = repr(e)[:300]
        if not isinstance(e, TimeoutError):
            traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if c.device != "cpu":
        torch.cuda.empty_cache()
    c.results.part(name, time.perf_counter() - start, clocks.part(), failure)
    return failure is None


def main():
    text = __doc__.replace("PARTS", "  " + "  ".join(f"{name} {limit}" for name, (_, limit) in PARTS.items()), 1)
    p = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("parts", nargs="*", metavar="PART")
    p.add_argument("--mask")
    p.add_argument("--scale", type=float, default=1.0)
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = p.parse_args()
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        p.error(f"no part {unknown[0]}; there are: {' '.join(PARTS)}")
    torch.manual_seed(0)
    c = Context(args, peers.Results(args.out, args.device))
    clocks = peers.Clocks()
    well = [run_part(name, c, clocks, args.scale) for name in args.parts or PARTS]
    clocks.close()
    print("\n" + "\n".join(peers.row_text(row) for row in c.results.table["rows"]))
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()

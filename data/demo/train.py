"""Trains the demo model from nothing: tokenizer, text encoder, VAE, transformer.

    python3 train.py --work /tmp/demo-work                 everything (about 25 minutes on one H100)
    python3 train.py --work /tmp/demo-work --stages dit    one stage; finished stages are read back from --out
    torchrun --nproc-per-node 2 train.py ... --stages dit  the transformer on two GPUs (or more)

Stages: tokenizer, text, vae, dit. The model lands in --out (default: this folder) in the Diffusers layout.
Time budgets rule the learning rates, so a slower machine needs larger --vae-seconds and --dit-seconds.
"""
import argparse
import base64
import collections
import copy
import json
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import UMT5EncoderModel

import draw
import grammar as g
import nets

HERE = Path(__file__).resolve().parent
START = time.time()
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def say(*words):
    if RANK == 0:
        print(f"[{time.time() - START:7.1f} s]", *words, flush=True)


# ---------------------------------------------------------------- tokenizer

def train_tokenizer(out, work):
    """A SentencePiece unigram model with UMT5's special ids, and the same model as tokenizer.json."""
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb
    rng = random.Random(1)
    lines = [g.text_of(g.caption(g.draw_spec(rng), rng)) for _ in range(30000)]
    (work / "captions.txt").write_text("\n".join(lines))
    folder = out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    spm.SentencePieceTrainer.train(
        input=str(work / "captions.txt"), model_prefix=str(work / "spiece"), model_type="unigram", vocab_size=640,
        hard_vocab_limit=False, normalization_rule_name="nmt_nfkc_cf", required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,;:'-!?",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=2, minloglevel=2)
    model = pb.ModelProto()
    model.ParseFromString((work / "spiece.model").read_bytes())
    # With so few words the trainer keeps fragments ("ye", "ll", "ow"). Add every word as a piece of its own.
    counts = collections.Counter(w for line in lines for w in g.words(line))
    total, have = sum(counts.values()), {p.piece for p in model.pieces}
    for word, n in sorted(counts.items()):
        if "\u2581" + word not in have:
            model.pieces.add(piece="\u2581" + word, score=math.log(n / total))
    model.trainer_spec.vocab_size = len(model.pieces)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    special = [{"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, s in enumerate(["<pad>", "</s>", "<unk>"])]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    fast = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()},
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": space, "decoder": space,
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                           "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[p.piece, p.score] for p in model.pieces], "byte_fallback": False},
    }
    (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0, "additional_special_tokens": [], **names}, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2))
    say("tokenizer:", len(model.pieces), "pieces")


def load_tokenizer(out):
    import sentencepiece as spm
    return spm.SentencePieceProcessor(model_file=str(out / "tokenizer" / "spiece.model"))


def tags_of(spec):
    """Per owner (0 nobody, 1, 2 objects, 3 background) the six answers of nets.Tagger, -1 = not asked."""
    rows = [[-1] * 6 for _ in range(4)]
    for k, o in enumerate(spec.objects):
        place = g.PLACE_NAMES.index(o.place) + 1 if o.place else 0
        rows[k + 1][:4] = [list(g.OBJECT_COLORS).index(o.color), g.SHAPES.index(o.shape), g.MOTION_NAMES.index(o.motion), place]
    rows[3][4:] = [list(g.COLORS).index(spec.bg), g.PATTERNS.index(spec.pattern)]
    return rows


def encode_caption(sp, spec, rng):
    """ids and tags of one wording, padded to nets.TOKENS. A token belongs to the owner of its first letter."""
    parts = g.caption(spec, rng)
    owner = [n for t, n in parts for _ in t]
    table, ids, tags, pos = tags_of(spec), [], [], -1       # -1: pieces start with a space that is not in the text
    for piece in sp.encode(g.text_of(parts), out_type=str):
        first = pos + (len(piece) > 1 and piece[0] == "\u2581")
        ids.append(sp.piece_to_id(piece))
        tags.append(table[owner[max(0, first)]])
        pos += len(piece)
    ids.append(1)
    tags.append(table[0])
    assert len(ids) <= nets.TOKENS, len(ids)
    pad = nets.TOKENS - len(ids)
    return ids + [0] * pad, tags + [[-1] * 6] * pad


def caption_arrays(sp, specs, variants, rng, device):
    ids = np.zeros((len(specs), variants, nets.TOKENS), np.int64)
    tags = np.zeros((len(specs), variants, nets.TOKENS, 6), np.int8)
    for i, spec in enumerate(specs):
        for v in range(variants):
            ids[i, v], tags[i, v] = encode_caption(sp, spec, rng)
    return torch.from_numpy(ids).to(device), torch.from_numpy(tags).to(device)


# ---------------------------------------------------------------- text encoder

@torch.no_grad()
def check_text_encoder(enc, sp, device, strict=True):
    """The two ways the encoder can fail unseen: one-hot attention, and tokens that ignore each other."""
    a, b = ("A {} circle moving up on the left and a {} star spinning on the right on a plain gray background".format(*c)
            for c in (("red", "blue"), ("blue", "red")))
    ids = torch.tensor([sp.encode(t) + [1] for t in (a, b)], device=device)
    rows = enc(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()
    same = ids[0] == ids[1]
    moved = ((rows[0] - rows[1]).norm(dim=-1) / rows[0].norm(dim=-1))
    pieces = [sp.id_to_piece(i) for i in ids[0].tolist()]
    objects = [moved[pieces.index("\u2581" + w)].item() for w in ("circle", "star")]
    stds = nets.attention_logit_std(enc, ids, torch.ones_like(ids))
    say(f"text encoder: colour swap moves circle/star by {objects[0]:.2f}/{objects[1]:.2f}, other tokens by "
        f"{moved[same].mean():.2f} on average; attention logit std", [round(s, 2) for s in stds])
    if strict:
        assert min(objects) > 0.1 and max(stds) < 20, "the text encoder does not bind colours to shapes"


def train_text(out, work, device, steps, batch=256):
    sp = load_tokenizer(out)
    rng = random.Random(2)
    torch.manual_seed(2)
    enc = nets.make_text_encoder(sp.get_piece_size()).to(device)
    tagger = nets.Tagger(256).to(device)
    ids, tags = caption_arrays(sp, [g.training_spec(rng) for _ in range(4000 if steps > 50 else 200)], 2, rng, device)
    ids, tags = ids.flatten(0, 1), tags.flatten(0, 1)
    opt = torch.optim.AdamW([*enc.parameters(), *tagger.parameters()], lr=3e-4, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = 3e-4 * min(1, (step + 1) / 50) * min(1, 2 * (1 - step / steps))
        pick = torch.randint(0, len(ids), (batch,), device=device)
        rows, _ = nets.text_rows(enc, ids[pick])
        loss, right = tagger(rows, tags[pick].long())
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(enc.parameters(), 1.0)
        opt.step()
        if step % 100 == 0 or step == steps - 1:
            say(f"text {step}: loss {loss.item():.4f}, right", [round(r, 3) for r in right.tolist()])
    held = []
    while len(held) < 300:
        spec = g.draw_spec(rng)
        if g.held_out(spec):
            held.append(spec)
    hids, htags = caption_arrays(sp, held, 2, rng, device)
    with torch.no_grad():
        _, right = tagger(nets.text_rows(enc, hids.flatten(0, 1))[0], htags.flatten(0, 1).long())
    say("text, held-out captions: right (colour, shape, motion, place, background, pattern)", [round(r, 4) for r in right.tolist()])
    check_text_encoder(enc, sp, device, strict=steps > 50)
    torch.save(tagger.state_dict(), work / "tagger.pt")
    save_text_encoder(enc, out)


def save_text_encoder(enc, out):
    enc = copy.deepcopy(enc).to(torch.bfloat16)
    enc.save_pretrained(out / "text_encoder", safe_serialization=True)


# ---------------------------------------------------------------- VAE

def schedule(p, hold):
    """Constant, then linear to zero from the share `hold` of the budget on."""
    return min(1.0, max(0.0, (1 - p) / (1 - hold)))


def image_gradients(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def moving(x, tones, patterns, top, left, size):
    """Weights for the error: 4 on and near the objects, which fill a small part of the picture, 1 elsewhere."""
    back = draw.backgrounds(tones, patterns, size) / 127.5 - 1
    if top is not None:
        back = back[..., top:top + x.shape[-2], left:left + x.shape[-1]]
    there = ((x - back[:, :, None]).abs().amax(1) > 0.05).float()
    return 1 + 3 * F.max_pool2d(there, 9, 1, 4)[:, None]


def train_vae(out, work, device, cfg):
    rng = random.Random(3)
    torch.manual_seed(3)
    if cfg.vae_start > 0:                                      # go on with the stored one
        vae = AutoencoderKLWan.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device)
    else:
        vae = nets.make_vae(cfg.vae_base).to(device)
    for p in vae.parameters():
        if p.ndim == 5 and device == "cuda":
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    pool = draw.pool([g.training_spec(rng) for _ in range(cfg.clips)], range(cfg.clips), device)
    matrices = [p for p in vae.parameters() if p.ndim >= 4 and p.numel() > max(p.shape)]
    known = {id(p) for p in matrices}
    opts = [(nets.Muon(matrices, 2e-3), 2e-3),
            (torch.optim.AdamW([p for p in vae.parameters() if id(p) not in known], 2e-3, betas=(0.9, 0.95), weight_decay=0), 2e-3)]

    def loss_of(x, focus, kl_weight):
        mean, logvar = nets.vae_encode(vae, x)
        logvar = logvar.clamp(-20, 10)
        z = mean + torch.randn_like(mean) * (logvar / 2).exp()
        y = nets.vae_decode(vae, z.to(x.dtype)).float()
        d = y - x
        mse = d.square().mean()
        fit = ((d.abs() + d.square()) * focus).mean()
        edges = sum((a - b).abs().mean() for a, b in zip(image_gradients(y), image_gradients(x)))
        kl = 0.5 * (mean * mean + logvar.exp() - 1 - logvar).mean()
        return fit + 0.25 * edges + kl_weight * kl, mse, kl

    step_fn = torch.compile(loss_of, dynamic=False) if cfg.compile else loss_of
    weight = torch.zeros((), device=device)
    begin, step, mses = time.time(), 0, []
    while True:
        p = cfg.vae_start + (time.time() - begin) / cfg.vae_seconds
        if p >= 1:
            break
        full = p > 0.75
        pick = torch.randint(0, cfg.clips, (2 if full else 8,), device=device)
        args = [a[pick] for a in pool]
        with torch.no_grad():
            if not full:                                       # 17 frames of a quarter of the picture
                t0 = random.randrange(0, g.FRAMES - cfg.crop_frames + 1)
                args[0] = args[0][:, :, t0:t0 + cfg.crop_frames]
            x = draw.render(*args, size=cfg.size)
            if not full:
                c = cfg.size // 2
                a, b = random.randrange(c + 1), random.randrange(c + 1)
                x = x[..., a:a + c, b:b + c]
            focus = moving(x, args[3], args[4], a if not full else None, b if not full else None, cfg.size)
            x = x.contiguous(memory_format=torch.channels_last_3d)
        weight.fill_(5e-4 * min(1, max(0, (p - 0.25) / 0.35)))
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, mse, kl = (loss_of if full else step_fn)(x, focus, weight)     # compiling again would cost a minute
        loss.backward()
        for opt, lr in opts:
            for group in opt.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 50) * schedule(p, 0.45)
            opt.step()
            opt.zero_grad(set_to_none=True)
        mses.append(mse.detach())
        step += 1
        if step == 1:
            torch.cuda.synchronize() if device == "cuda" else None
            say(f"vae: first step took {time.time() - begin:.1f} s")
            begin = time.time()                                # compiling is not part of the budget
        if step % 100 == 0 or not cfg.compile:
            mean = torch.stack(mses[-50:]).mean().item()
            say(f"vae {step}: {100 * p:.0f} %, PSNR {-10 * math.log10(mean / 4):.2f}, kl {kl.item():.3f}")
    say("vae:", step, "steps")
    vae = vae.to(torch.bfloat16).to(torch.float32)             # what will be on disk
    report_psnr(vae, device, cfg)
    stats = latent_stats(vae, pool, device, cfg)
    save_vae(vae, out, stats)


@torch.no_grad()
def report_psnr(vae, device, cfg):
    """Reconstruction of clips of held-out prompts, whole clips, weights as stored."""
    texts = g.read_prompts(cfg.prompts / "demo_easy.txt")[:16] + g.read_prompts(cfg.prompts / "demo_hard.txt")[:16]
    texts = texts if cfg.compile else texts[:2]
    pool, out = draw.pool([g.parse(t) for t in texts], range(90_000, 90_000 + len(texts)), device), []
    for i in range(0, len(texts), 4):
        x = draw.render(*(a[i:i + 4] for a in pool), size=cfg.size)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            y = nets.vae_decode(vae, nets.vae_encode(vae, x)[0]).float().clamp(-1, 1)
        out += [-10 * math.log10(m / 4) for m in (y - x).square().mean((1, 2, 3, 4)).tolist()]
    say(f"vae: PSNR of {len(out)} held-out clips: mean {np.mean(out):.2f} dB, lowest {min(out):.2f} dB")


def encode_clips(vae, pool, device, cfg, count, batch=8):
    fn = torch.compile(nets.vae_encode, dynamic=False) if cfg.compile else nets.vae_encode
    parts = []
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for i in range(0, count, batch):
            x = draw.render(*(a[i:i + batch] for a in pool), size=cfg.size).contiguous(memory_format=torch.channels_last_3d)
            parts.append(fn(vae, x)[0].to(torch.bfloat16))
    return torch.cat(parts)


def latent_stats(vae, pool, device, cfg):
    z = encode_clips(vae, pool, device, cfg, min(512, cfg.clips)).float()
    return z.mean((0, 2, 3, 4)).tolist(), z.std((0, 2, 3, 4)).tolist()


def save_vae(vae, out, stats):
    vae = copy.deepcopy(vae).to(torch.bfloat16)
    vae.register_to_config(latents_mean=[round(v, 5) for v in stats[0]], latents_std=[round(v, 5) for v in stats[1]])
    for p in vae.parameters():
        p.data = p.data.contiguous()
    vae.save_pretrained(out / "vae")
    config = json.loads((out / "vae" / "config.json").read_text())
    config.pop("_name_or_path", None)                          # a resumed VAE would tell where it was
    (out / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    say("vae: latent std", [round(v, 2) for v in stats[1]])


# ---------------------------------------------------------------- transformer

def train_dit(out, work, device, cfg):
    rng = random.Random(4 + 100 * RANK)                        # every GPU draws clips of its own
    sp = load_tokenizer(out)
    vae = AutoencoderKLWan.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device)
    enc = UMT5EncoderModel.from_pretrained(out / "text_encoder", torch_dtype=torch.float32).to(device)
    tagger = nets.Tagger(256).to(device)
    if (work / "tagger.pt").exists():
        tagger.load_state_dict(torch.load(work / "tagger.pt", map_location=device))
    check_text_encoder(enc, sp, device, strict=cfg.compile)
    specs = [g.training_spec(rng) for _ in range(cfg.clips)]
    pool = draw.pool(specs, range(1_000_000 * (1 + RANK), 1_000_000 * (1 + RANK) + cfg.clips), device)
    ids, tags = caption_arrays(sp, specs, 4, rng, device)
    say("dit: captions ready")
    z = encode_clips(vae, pool, device, cfg, cfg.clips)
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    for i in range(0, len(z), 512):
        z[i:i + 512] = ((z[i:i + 512].float() - mean) / std).to(z.dtype)
    del vae, pool
    say("dit: latents", list(z.shape))
    held = 128 if cfg.clips > 1000 else 4                      # a few clips kept for the validation loss
    torch.manual_seed(4)
    dit = nets.make_transformer(layers=cfg.layers).to(device)  # the same everywhere
    torch.manual_seed(5 + RANK)
    nets.use_fast_attention(dit)
    say("dit:", sum(p.numel() for p in dit.parameters()), "parameters; text encoder", sum(p.numel() for p in enc.parameters()))
    matrices = [p for n, p in dit.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in dit.parameters() if id(p) not in known]
    opts = [(nets.Muon(matrices, 2e-3, weight_decay=0.01), [2e-3]),
            (torch.optim.AdamW([{"params": others}, {"params": enc.parameters()}, {"params": tagger.parameters()}],
                               betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda"), [1e-3, 1e-4, 1e-4])]
    params = [*dit.parameters(), *enc.parameters()]
    ema = [p.detach().clone() for p in params]
    empty = torch.zeros(nets.TOKENS, dtype=torch.long, device=device)
    empty[0] = 1
    if device == "cuda":
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
    if cfg.compile:                                            # one block's code serves all; much faster than compiling the whole
        for block in dit.blocks:
            block.compile(dynamic=False)

    def noisy(x, t, gen=None):
        e = torch.randn(x.shape, device=device, generator=gen)
        s = t.view(-1, 1, 1, 1, 1)
        return (1 - s) * x + s * e, e - x

    @torch.no_grad()
    def validate():
        """Velocity error on clips not trained on, at four noise levels: right caption, then a wrong one."""
        line = []
        for level in (0.3, 0.7, 0.9, 0.97):
            gen = torch.Generator(device).manual_seed(7)
            x = z[:held].float()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                xt, v = noisy(x, torch.full((held,), level, device=device), gen)
                err = []
                for cap in (ids[:held, 0], ids[:held, 0].roll(1, 0)):
                    rows, bias = nets.text_rows(enc, cap)
                    pred = torch.cat([nets.dit_forward(dit, a, torch.full((len(a),), level * 1000, device=device), r, b)
                                      for a, r, b in zip(xt.split(32), rows.split(32), bias.split(32))])
                    err.append((pred.float() - v).square().mean().item())
            line.append(f"{level}: {err[0]:.4f} / {err[1]:.4f}")
        return "; ".join(line)

    everything = [*params, *tagger.parameters()]

    def share_gradients():
        flat = torch._utils._flatten_dense_tensors([p.grad for p in everything])
        dist.all_reduce(flat)
        for p, q in zip(everything, torch._utils._unflatten_dense_tensors(flat / WORLD, everything)):
            p.grad.copy_(q)

    begin, step, losses, last_save, compiled, p = time.time(), 0, [], time.time(), set(), 0.0
    while True:
        now = time.time()
        if WORLD == 1:
            p = (now - begin) / cfg.dit_seconds
        elif step % (20 if cfg.compile else 2) == 0:                                   # one clock for all, and no drifting apart
            clock = torch.tensor([(now - begin) / cfg.dit_seconds], dtype=torch.float64)
            dist.broadcast(clock, 0)
            p = clock.item()
            if step % 500 == 0:
                for q in everything:
                    dist.broadcast(q.data, 0)
        if p >= 1:
            break
        short = p < cfg.short                                  # first only the first 3 latent frames
        n = cfg.batch * 3 if short else cfg.batch
        pick = torch.randint(held, cfg.clips, (n,), device=device)
        x = z[pick, :, :3].float() if short else z[pick].float()
        which = torch.randint(0, 4, (n,), device=device)
        cap, tag = ids[pick, which], tags[pick, which].long()
        drop = torch.rand(n, device=device) < 0.1
        cap = torch.where(drop[:, None], empty, cap)
        tag = torch.where(drop[:, None, None], -1, tag)
        u = torch.sigmoid(torch.randn(n, device=device))
        t = torch.where(torch.rand(n, device=device) < 0.1, torch.rand(n, device=device), 3 * u / (1 + 2 * u))
        xt, v = noisy(x, t)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            rows, bias = nets.text_rows(enc, cap)
            pred = nets.dit_forward(dit, xt, t * 1000, rows, bias)
            loss = (pred.float() - v).square().mean()
            tag_loss, _ = tagger(rows, tag)
        (loss + 0.02 * tag_loss).backward()
        if WORLD > 1:
            share_gradients()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        scale = min(1, (step + 1) / 150) * schedule(p, 0.5)
        for opt, rates in opts:
            for group, lr in zip(opt.param_groups, rates):
                group["lr"] = lr * scale
            opt.step()
            opt.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - min(0.998, (step + 1) / (step + 10)))
        losses.append(loss.detach())
        step += 1
        if short not in compiled:
            compiled.add(short)
            torch.cuda.synchronize() if device == "cuda" else None
            say(f"dit: first step of {'short' if short else 'whole'} clips took {time.time() - now:.1f} s")
        if step % 200 == 0 or not cfg.compile:
            value = torch.stack(losses[-200:]).mean().item()
            say(f"dit {step}: {100 * p:.0f} %, loss {value:.4f}{' (short)' if short else ''}")
        if step % 2000 == 0 and RANK == 0:
            say("dit: validation, right / wrong caption:", validate())
            check_text_encoder(enc, sp, device, strict=False)
        if RANK == 0 and time.time() - last_save > 150:
            save_dit(dit, enc, params, ema, out)
            last_save = time.time()
    say("dit:", step, "steps")
    if RANK > 0:
        return
    for p, e in zip(params, ema):
        p.data.copy_(e)
    if cfg.compile:
        say("dit: validation of the average, right / wrong caption:", validate())
        check_text_encoder(enc, sp, device, strict=False)
    save_dit(dit, enc, params, ema, out)


def save_dit(dit, enc, params, ema, out):
    """Writes the averaged weights in bf16, into files small enough to be moved about."""
    kept = [p.data for p in params]
    for p, e in zip(params, ema):
        p.data = e
    state = {k: v.detach().to(torch.bfloat16).contiguous().cpu() for k, v in dit.state_dict().items()}
    model = WanTransformer3DModel.from_config(dit.config).to(torch.bfloat16)
    model.load_state_dict(state)
    model.save_pretrained(out / "transformer", max_shard_size="14MB")
    save_text_encoder(enc, out)
    for p, k in zip(params, kept):
        p.data = k
    say("saved")


def save_rest(out):
    """The scheduler and the list of parts."""
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0).save_pretrained(out / "scheduler")
    import diffusers
    (out / "model_index.json").write_text(json.dumps({
        "_class_name": "WanPipeline", "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"]}, indent=2) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", type=Path, required=True, help="scratch folder")
    ap.add_argument("--out", type=Path, default=HERE)
    ap.add_argument("--prompts", type=Path, default=HERE.parent.parent / "prompts")
    ap.add_argument("--stages", default="tokenizer,text,vae,dit")
    ap.add_argument("--vae-seconds", type=float, default=270)
    ap.add_argument("--vae-start", type=float, default=0, help="go on with the stored VAE at this share of its budget")
    ap.add_argument("--dit-seconds", type=float, default=900)
    ap.add_argument("--text-steps", type=int, default=1000)
    ap.add_argument("--clips", type=int, default=8000)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--layers", type=int, default=8)
    ap.add_argument("--short", type=float, default=0.15, help="share of the transformer's time spent on short clips")
    ap.add_argument("--tiny", action="store_true", help="minutes on a CPU, to test the script; the model is useless")
    cfg = ap.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if WORLD > 1:
        assert cfg.stages == "dit", "only the transformer is trained on several GPUs"
        if device == "cuda":
            torch.cuda.set_device(RANK)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    cfg.compile, cfg.size, cfg.crop_frames, cfg.vae_base = not cfg.tiny, g.SIZE, 17, 24
    if cfg.tiny:
        cfg.size, cfg.crop_frames, cfg.clips, cfg.batch = 64, 5, 16, 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    cfg.work.mkdir(parents=True, exist_ok=True)
    cfg.out.mkdir(parents=True, exist_ok=True)
    say("torch", torch.__version__, "on", torch.cuda.get_device_name() if device == "cuda" else "the CPU")
    stages = cfg.stages.split(",")
    if RANK == 0:
        save_rest(cfg.out)
    if "tokenizer" in stages:
        train_tokenizer(cfg.out, cfg.work)
    if "text" in stages:
        train_text(cfg.out, cfg.work, device, cfg.text_steps)
    if "vae" in stages:
        train_vae(cfg.out, cfg.work, device, cfg)
    if "dit" in stages:
        train_dit(cfg.out, cfg.work, device, cfg)
    if WORLD > 1:
        dist.destroy_process_group()
    say("done")


if __name__ == "__main__":
    main()

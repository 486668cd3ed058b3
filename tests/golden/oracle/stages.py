"""Reference values stage by stage: text encoder, transformer, VAE. Names are those of the engine's taps (tap.h)."""
import numpy as np
import torch

from . import hashgen, models
from .double import double_precision

TEXT_LEN = 512


def text(cases, store):
    for case in cases["text"]:
        for name in case["models"]:
            with double_precision():
                rows = run_text(models.build(name, "text_encoder"), case)
            store.add(f"text/{name}/{case['name']}/text.rows", rows)


def run_text(encoder, case):
    ids = torch.zeros(1, TEXT_LEN, dtype=torch.int64)
    ids[0, : case["n"]] = torch.from_numpy(hashgen.text_ids(case["name"], case["n"], encoder.config.vocab_size))
    mask = (torch.arange(TEXT_LEN) < case["n"]).long()[None]
    return encoder(ids, mask).last_hidden_state[0, : case["n"]]  # as WanPipeline slices them


def text_rows(case, dim):
    """Synthetic output of a text encoder: n rows, zero up to 512 as the pipeline pads them."""
    rows = np.zeros((TEXT_LEN, dim), np.float32)
    rows[: case["n"]] = hashgen.normalish(f"dit:{case['name']}:rows", (case["n"], dim))
    return torch.from_numpy(rows)


def dit(cases, store):
    for case in cases["dit"]:
        for name in case["models"]:
            with double_precision():
                model = models.build(name, "transformer")
                run_dit(model, name, case, store)


def run_dit(model, name, case, store):
    cfg = model.config
    key = f"dit/{name}/{case['name']}/"
    shape = (cfg.in_channels, case["f"], 2 * case["h"], 2 * case["w"])
    x = torch.from_numpy(hashgen.normalish(f"dit:{case['name']}:latents", shape)).double()[None]
    rows = text_rows(case, cfg.text_dim).double()[None]
    hooks = []

    def hook(module, stage, pick):
        hooks.append(module.register_forward_hook(lambda _m, _i, out: store.add(key + stage, pick(out))))

    hook(model.patch_embedding, "dit.patch", lambda o: o[0].flatten(1).T)
    # the embedder returns (e, e0, context, image); padded rows of the context are all alike: keep one of them
    hook(model.condition_embedder, "dit.temb", lambda o: o[0][0])
    hook(model.condition_embedder, "dit.temb6", lambda o: o[1][0])
    hook(model.condition_embedder, "dit.ctx", lambda o: o[2][0][: min(case["n"] + 1, TEXT_LEN)])
    for i, block in enumerate(model.blocks):
        hook(block, f"dit.block.{i}", lambda o: o[0])
    t = torch.tensor([case["t"]], dtype=torch.float64)
    v = model(x, t, rows, return_dict=False)[0][0]
    for h in hooks:
        h.remove()
    store.add(key + "dit.velocity", v)
    # Classifier-free guidance as WanPipeline combines it; the other branch has a prompt of two rows
    other = text_rows({"name": case["name"] + ":other", "n": 2}, cfg.text_dim).double()[None]
    u = model(x, t, other, return_dict=False)[0][0]
    store.add(key + "dit.guided", u + 5.0 * (v - u))


def vae(cases, store):
    for case in cases["vae"]:
        for name in case["models"]:
            with double_precision():
                model = models.build(name, "vae")
                run_vae(model, name, case, store)


def vae_input(model, case):
    """Latents of a case after the pipeline's own normalisation, spelled as it spells it."""
    shape = (model.config.z_dim, case["f"], case["h"], case["w"])
    latents = torch.from_numpy(hashgen.normalish(f"vae:{case['name']}:latents", shape)).double()[None]
    mean = torch.tensor(model.config.latents_mean, dtype=torch.float64).view(1, -1, 1, 1, 1)
    inverse = 1.0 / torch.tensor(model.config.latents_std, dtype=torch.float64).view(1, -1, 1, 1, 1)
    return latents / inverse + mean


def run_vae(model, name, case, store):
    key = f"vae/{name}/{case['name']}/"
    chunks = {}
    hooks = []

    def hook(module, stage):
        def keep(_module, _inputs, out):  # one call per latent frame: [1, C, T, H, W] -> [T, H, W, C]
            chunks.setdefault(stage, []).append(out[0].permute(1, 2, 3, 0))

        hooks.append(module.register_forward_hook(keep))

    decoder = model.decoder
    hook(decoder.conv_in, "vae.conv_in")
    hook(decoder.mid_block, "vae.mid")
    for i, block in enumerate(decoder.up_blocks):
        hook(block, f"vae.up.{i}")
    hook(decoder.conv_out, "vae.out")
    video = model.decode(vae_input(model, case), return_dict=False)[0]
    for h in hooks:
        h.remove()
    for stage, parts in chunks.items():
        store.add(key + stage, torch.cat(parts))
    store.add_plain(key + "frames", to_u8(video[0].permute(1, 2, 3, 0).numpy()), np.uint8)


def to_u8(video):
    """VideoProcessor.postprocess_video(output_type="np") and the truncation that writers of numpy frames apply."""
    return np.trunc(np.clip(video * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)


def bf16_errors(cases):
    """How far the references themselves are off when run in bfloat16: what a bf16 engine may be held to (manifest.json)."""
    worst = {}

    def note(part, exact, half):
        error = float((half.double() - exact).norm() / exact.norm())
        worst[part] = round(max(worst.get(part, 0.0), error), 4)

    with double_precision():
        for case in cases["text"]:
            for name in set(case["models"]) & {"A", "B"}:
                encoder = models.build(name, "text_encoder")
                note("text", run_text(encoder, case), run_text(encoder.bfloat16(), case))
        for case in cases["vae"]:
            for name in set(case["models"]) & {"A", "B"}:
                model = models.build(name, "vae")
                z = vae_input(model, case)
                exact = model.decode(z, return_dict=False)[0]
                note("vae", exact, model.bfloat16().decode(z.bfloat16(), return_dict=False)[0])
    return worst

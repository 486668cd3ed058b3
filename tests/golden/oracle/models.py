"""Builds the reference models of models.json with hash-generated weights, and lists tensor names and shapes."""
import copy
import json
import os

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from . import hashgen

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARTS = ("transformer", "text_encoder", "vae", "scheduler")


def load_json(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return json.load(f)


def config(name):
    """The model's entry with 'like' resolved: parts are merged key by key."""
    table = load_json("models.json")["models"]
    entry = table[name]
    if "like" not in entry:
        return copy.deepcopy(entry)
    base = config(entry["like"])
    for key, value in entry.items():
        if key in PARTS and value is not None and base.get(key) is not None:
            base[key].update(value)
        else:
            base[key] = value
    return base


def plain(part):
    """Arguments of the class: the config without the keys that describe the file."""
    return {k: v for k, v in part.items() if not k.startswith("_") and k not in ("clip_output",)}


def build_empty(cfg, part):
    if part == "transformer":
        return WanTransformer3DModel(**plain(cfg[part]))
    if part == "vae":
        return AutoencoderKLWan(**plain(cfg[part]))
    umt5 = UMT5Config(**{k: v for k, v in cfg[part].items() if k not in ("architectures", "torch_dtype", "scalable_attention")})
    umt5._attn_implementation = "eager"
    return UMT5EncoderModel(umt5)


def tensor_list(cfg, part):
    """[(name, shape)] as the published files hold them: without the alias that UMT5 keeps of its embedding."""
    with torch.device("meta"):
        state = build_empty(cfg, part).state_dict()
    return [(n, tuple(t.shape)) for n, t in state.items() if n != "encoder.embed_tokens.weight"]


def on_disk(values, dtype):
    """float32 values after a round trip through the dtype of the file."""
    t = torch.from_numpy(values)
    if dtype == "BF16":
        return t.to(torch.bfloat16).to(torch.float32)
    if dtype == "F16":
        return t.to(torch.float16).to(torch.float32)
    return t


def build(name, part, double=True):
    """A model with its weights, in float64 unless told otherwise. Strict: every tensor is set, none is left over."""
    cfg = config(name)
    model = build_empty(cfg, part)
    state = {n: on_disk(hashgen.weight(n, tuple(t.shape)), cfg["dtype"]) for n, t in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    model.eval().requires_grad_(False)
    if double:
        model.double()
    for n, t in model.state_dict().items():  # nothing was tied, dropped or left at its random initial value
        assert np.array_equal(t.double().numpy(), state[n].double().numpy()), n
    return model

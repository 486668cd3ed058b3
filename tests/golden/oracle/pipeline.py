"""The whole WanPipeline of diffusers on a small model: prompts and noise in, latents and frames out."""
import numpy as np
import torch
from diffusers import WanPipeline

from . import hashgen, models, solvers
from .double import double_precision
from .prompts import Tokenizer


def keep_double(scheduler):
    """set_timesteps is called inside the pipeline and leaves float32 sigmas: lift them after each call."""
    inner = scheduler.set_timesteps

    def set_timesteps(*args, **kwargs):
        inner(*args, **kwargs)
        scheduler.sigmas = scheduler.sigmas.double()

    scheduler.set_timesteps = set_timesteps
    return scheduler


def run(cases, store, old, spiece):
    for case in cases["pipeline"]:
        name, key = case["model"], f"pipeline/{case['name']}/"
        with double_precision():
            parts = {p: models.build(name, p) for p in ("transformer", "text_encoder", "vae")}
            scheduler = keep_double(solvers.make(case["solver"], case["sigmas"], case["steps"], case["shift"], old))
            pipe = WanPipeline(tokenizer=Tokenizer(spiece), scheduler=scheduler, **parts)
            pipe.set_progress_bar_config(disable=True)
            shape = (16, case["f"], 2 * case["h"], 2 * case["w"])
            noise = torch.from_numpy(hashgen.normalish(f"pipeline:{case['name']}:noise", shape)).double()[None]
            last = {}

            def keep(_pipe, _i, _t, tensors):
                last["latents"] = tensors["latents"][0].numpy().copy()
                return tensors

            args = dict(prompt=cases["pipeline_prompt"], negative_prompt=cases["pipeline_negative"], latents=noise,
                        height=16 * case["h"], width=16 * case["w"], num_frames=4 * case["f"] - 3,
                        num_inference_steps=case["steps"], guidance_scale=case["guidance"])
            frames = pipe(output_type="np", callback_on_step_end=keep, **args).frames[0]
        assert last["latents"].dtype == np.float64
        store.add(key + "latents", last["latents"])
        if case.get("frames"):
            store.add_plain(key + "frames", np.trunc(frames * 255.0), np.uint8)

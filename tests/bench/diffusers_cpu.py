"""The peer: diffusers' WanPipeline on the same model folder, noise and settings as haste-run; here on a CPU.

    python diffusers_cpu.py -m data/demo -p "a red star spins" --noise noise.safetensors --steps 30 --threads 2

Prints seconds per stage as JSON; saves frames (.npy, uint8 [F, H, W, 3]) and final latents (safetensors) if asked.
Needs torch, diffusers, transformers, sentencepiece, ftfy, safetensors (tests/golden/requirements.txt).
"""
import argparse
import json
import os
import resource
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))

DEFAULTS = {"width": 832, "height": 480, "frames": 81, "steps": 50, "guidance": 5.0, "shift": 3.0, "negative_prompt": ""}


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return json.load(f)


def model_defaults(folder):
    """Settings that are not given: the scheduler's shift, haste.json, else the family's values.

    The negative prompt of a folder without haste.json is empty here; haste-run has the family's long one."""
    values = dict(DEFAULTS)
    values["shift"] = read_json(folder, "scheduler", "scheduler_config.json").get("flow_shift", values["shift"])
    if os.path.exists(os.path.join(folder, "haste.json")):
        values.update({k: v for k, v in read_json(folder, "haste.json").items() if k in values})
    return values


class Peer:
    """A loaded pipeline. One object serves many prompts, as one haste-run process does with --prompts.

    The VAE is fp32 in every dtype, as diffusers' documentation loads it, unless vae says otherwise."""

    def __init__(self, folder, dtype="fp32", threads=0, sigmas="a", shift=3.0, device="cpu", vae="fp32"):
        import torch
        import diffusers
        import transformers
        from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
        from oracle.prompts import Tokenizer
        from transformers import UMT5EncoderModel

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        self.torch, start = torch, time.perf_counter()
        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
        kind, self.device = kinds[dtype], device
        text = UMT5EncoderModel.from_pretrained(os.path.join(folder, "text_encoder"), dtype=kind)
        # only shared.weight is in the files: transformers 5 leaves the encoder's own copy untouched (transformers #43880)
        text.encoder.embed_tokens.weight = text.shared.weight
        scheduler = UniPCMultistepScheduler.from_pretrained(os.path.join(folder, "scheduler"), flow_shift=shift)
        if sigmas == "a":
            use_grid_a(scheduler)
        self.pipe = WanPipeline(
            tokenizer=Tokenizer(os.path.join(folder, "tokenizer", "spiece.model")),
            text_encoder=text.eval(),
            transformer=WanTransformer3DModel.from_pretrained(os.path.join(folder, "transformer"), torch_dtype=kind),
            vae=AutoencoderKLWan.from_pretrained(os.path.join(folder, "vae"), torch_dtype=kinds[vae]),
            scheduler=scheduler,
        ).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.load_seconds = time.perf_counter() - start

    def run(self, prompt, negative, width, height, frames, steps, guidance, noise=None, seed=0):
        """One video -> frames uint8 [F, H, W, 3], latents [C, f, h, w], seconds per stage."""
        import numpy as np

        torch, pipe = self.torch, self.pipe
        shape = (1, pipe.transformer.config.in_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
        if noise is None:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        noise = noise.reshape(shape).to(self.device)
        times, marks = {}, []
        with torch.no_grad():
            start = time.perf_counter()
            embeds, other = pipe.encode_prompt(prompt, negative, guidance > 1, max_sequence_length=512)
            times["text"] = time.perf_counter() - start

            def mark(_pipe, _i, _t, tensors):
                marks.append(time.perf_counter())
                return tensors

            start = time.perf_counter()
            latents = pipe(prompt_embeds=embeds, negative_prompt_embeds=other, latents=noise, height=height,
                           width=width, num_frames=frames, num_inference_steps=steps, guidance_scale=guidance,
                           output_type="latent", callback_on_step_end=mark).frames
            times["denoise"] = time.perf_counter() - start
            times["per_step"] = [b - a for a, b in zip([start, *marks], marks)]
            start = time.perf_counter()
            video = pipe.vae.decode(self.denormalise(latents), return_dict=False)[0]
            video = pipe.video_processor.postprocess_video(video, output_type="np")[0]
            times["decode"] = time.perf_counter() - start
        times["load"] = self.load_seconds
        times["total"] = sum(times[k] for k in ("load", "text", "denoise", "decode"))
        return np.trunc(video * 255.0).astype(np.uint8), latents[0].float().cpu().numpy(), times

    def denormalise(self, latents):
        """As WanPipeline does before it decodes."""
        vae, torch = self.pipe.vae, self.torch
        mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents.device, vae.dtype)
        inverse = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(latents.device, vae.dtype)
        return latents.to(vae.dtype) / inverse + mean


def use_grid_a(scheduler):
    """Wan2.1's own sigma grid (and that of diffusers before 2026), which is haste-run's default: spec grid A."""
    import numpy as np

    inner = scheduler.set_timesteps

    def set_timesteps(num_inference_steps, device=None):
        inner(sigmas=np.linspace(0.999, 0, num_inference_steps + 1)[:-1], device=device)

    scheduler.set_timesteps = set_timesteps


def load_noise(path):
    from safetensors.torch import load_file

    return load_file(path)["latents"]


def save_latents(path, latents):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"latents": np.ascontiguousarray(latents, np.float32)}, path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("-p", "--prompt", required=True)
    p.add_argument("-n", "--negative", help="default: the model's")
    for name in ("width", "height", "frames", "steps"):
        p.add_argument("--" + name, type=int)
    p.add_argument("--guidance", type=float)
    p.add_argument("--shift", type=float)
    p.add_argument("--sigmas", choices=["a", "b"], default="a", help="a: Wan2.1 and haste-run; b: diffusers of 2026")
    p.add_argument("--noise", help="safetensors with `latents` [C, f, h, w]")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--repeat", type=int, default=1, help="videos in a row; the figures are those of the fastest")
    p.add_argument("-o", "--output", help="frames as .npy")
    p.add_argument("--save-latents")
    args = p.parse_args()
    base = model_defaults(args.model)
    value = {k: base[k] if getattr(args, k, None) is None else getattr(args, k) for k in
             ("width", "height", "frames", "steps", "guidance", "shift")}
    shift = value.pop("shift")
    negative = base["negative_prompt"] if args.negative is None else args.negative
    peer = Peer(args.model, args.dtype, args.threads, args.sigmas, shift)
    noise = load_noise(args.noise) if args.noise else None
    best = None
    for _ in range(args.repeat):
        frames, latents, times = peer.run(args.prompt, negative, noise=noise, seed=args.seed, **value)
        if best is None or times["denoise"] < best["denoise"]:
            best = times
    if args.output:
        import numpy as np

        np.save(args.output, frames)
    if args.save_latents:
        save_latents(args.save_latents, latents)
    print(json.dumps({
        "program": "diffusers", "dtype": args.dtype, "threads": peer.torch.get_num_threads(), **value, "shift": shift,
        "sigmas": args.sigmas, "seconds": best,
        "peak_bytes": {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
    }, indent=1))


if __name__ == "__main__":
    main()

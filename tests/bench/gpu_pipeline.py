"""Seconds and memory of diffusers' WanPipeline at full size, stage by stage, with random weights.

    python gpu_pipeline.py OUT.json [CONFIG...] [--compile] [--steps 2] [--of 50]

CONFIG: 13-480p 13-720p 14-720p, each 81 frames (default: all three). Text encoding: UMT5-XXL on prompt and negative
prompt, 512 tokens each. Denoising: WanPipeline itself, guidance on, a few steps after a small warm-up; the last of them
counts, and the total is that step times --of: EXTRAPOLATED, not run. Decoding: the VAE in fp32, as diffusers'
documentation loads it, and in bf16. Nothing is offloaded; peaks are of each stage with everything resident, and the
weights' sizes are given so that what offloading would save can be told. No loading: random weights are made in place.
--device cpu runs toy sizes, to try the script without a GPU. All three on an H200, eager: about 3 minutes.
"""
import argparse
import sys
import time

import torch

import peers

CONFIGS = {"13-480p": ("1.3B", "480p"), "13-720p": ("1.3B", "720p"), "14-720p": ("14B", "720p")}


def pipeline(name, text, device, toy):
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    pipe = WanPipeline(tokenizer=None, text_encoder=text, transformer=peers.transformer(name, device, toy),
                       vae=peers.vae(device, torch.float32, toy), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encode(text, device):
    """Prompt and negative prompt, one after the other, as WanPipeline does."""
    ids = torch.randint(3, text.config.vocab_size, (1, 512), device=device)
    mask = torch.ones_like(ids)
    return [text(ids, attention_mask=mask).last_hidden_state for _ in range(2)]


def denoise(pipe, embeds, size, frames, steps, device):
    """Latents, and the seconds of every step."""
    marks = []

    def mark(_pipe, _i, _t, tensors):
        peers.synchronize(device)
        marks.append(time.perf_counter())
        return tensors

    start = time.perf_counter()
    latents = pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], width=size[0], height=size[1],
                   num_frames=frames, num_inference_steps=steps, guidance_scale=5.0, output_type="latent",
                   callback_on_step_end=mark).frames
    return latents, [b - a for a, b in zip([start, *marks], marks)]


def stage(results, part, what, device, fn, **more):
    peers.reset_peak(device)
    start = time.perf_counter()
    value = fn()
    peers.synchronize(device)
    took = time.perf_counter() - start
    results.add(part, what, seconds=took, peak_GiB=peers.peak_gib(device), **more)
    return value, took


def one(results, name, text, args, clocks):
    model, size_name = CONFIGS[name]
    toy, device, began = args.device == "cpu", args.device, time.perf_counter()
    size, frames = ((64, 64), 9) if toy else (peers.SIZES[size_name], peers.FRAMES)
    clocks.part()
    with torch.no_grad():
        pipe = pipeline(model, text, device, toy)
        results.add(name, "weights", text_GiB=peers.weights_gib(text), transformer_GiB=peers.weights_gib(pipe.transformer),
                    vae_fp32_GiB=peers.weights_gib(pipe.vae))
        embeds = encode(text, device)
        embeds, text_s = stage(results, name, "text encoding, 2 x 512 tokens", device, lambda: encode(text, device))
        small = (64, 64)
        with peers.cudnn_attention(device):
            denoise(pipe, embeds, small, 5, 1, device)
            if args.compile:
                pipe.transformer.compile_repeated_blocks(dynamic=False)
            peers.reset_peak(device)
            latents, steps = denoise(pipe, embeds, size, frames, args.steps, device)
        results.add(name, "denoising, a step (two branches)", seconds=steps[-1], all_steps=[round(s, 3) for s in steps],
                    peak_GiB=peers.peak_gib(device), compiled=args.compile)
        decode_s = {}
        for dtype in (torch.float32, torch.bfloat16):
            vae = pipe.vae.to(dtype)
            vae.decode(torch.randn(*peers.latent_shape(small, 5), device=device, dtype=dtype), return_dict=False)
            z, kind = latents.to(dtype), str(dtype).split(".")[-1]
            _, decode_s[kind] = stage(results, name, "decoding, " + kind, device,
                                      lambda: vae.decode(z, return_dict=False))
    for kind, seconds in decode_s.items():
        results.add(name, f"total, {args.of} steps EXTRAPOLATED, VAE {kind}",
                    seconds=text_s + args.of * steps[-1] + seconds)
    results.part(name, time.perf_counter() - began, clocks.part())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("configs", nargs="*", metavar="CONFIG")
    p.add_argument("--compile", action="store_true", help="compile the transformer's blocks (regional compilation)")
    p.add_argument("--steps", type=int, default=2, help="steps that are really run; with --compile the first compiles")
    p.add_argument("--of", type=int, default=50, help="steps that the total stands for")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = p.parse_args()
    unknown = [name for name in args.configs if name not in CONFIGS]
    if unknown:
        p.error(f"no config {unknown[0]}; there are: {' '.join(CONFIGS)}")
    torch.manual_seed(0)
    results, clocks, failed = peers.Results(args.out, args.device), peers.Clocks(), False
    text = peers.text_encoder(args.device, args.device == "cpu")
    for name in args.configs or CONFIGS:
        try:
            one(results, name, text, args, clocks)
        except Exception as e:  # the next configuration may fit where this one did not
            failed = True
            results.add(name, "failed", error=repr(e)[:300])
        if args.device != "cpu":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
    clocks.close()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

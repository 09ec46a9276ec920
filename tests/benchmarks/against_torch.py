"""Times a U-Net evaluation and a whole edit against diffusers, with the same weights and threads.

    python -m tests.benchmarks.against_torch --size embedded
    python -m tests.benchmarks.against_torch --size sd15 --repeats 3

Both sides run in turns, so that load of the machine affects both equally. A ratio above 1 means
that JAX is faster; compile time is reported separately. On a GPU both run in bfloat16, and
diffusers uses its default scaled-dot-product attention.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

import ivid2vid_jax
from ivid2vid_jax.diffusion.samplers import make_sampler
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.inference.sampling_loop import Condition
from ivid2vid_jax.models import InflatedUNet3D
from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.video.fit import ResizePlan
from tests.benchmarks.turns import sync, turns
from tests.support import factory

EMBEDDED_UNET = dict(
    sample_size=16,
    in_channels=8,
    out_channels=4,
    block_out_channels=(48, 64, 96),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=96,
    attention_head_dim=(3, 4, 6),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
EMBEDDED_VAE = dict(
    block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, sample_size=64
)
EMBEDDED_TEXT = factory.TEXT_TINY | dict(
    hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=6
)
EMBEDDED = dict(
    unet=EMBEDDED_UNET, vae=EMBEDDED_VAE, text=EMBEDDED_TEXT, pixels=64, frames=8, steps=20
)
SD15 = dict(
    unet=factory.UNET_SD15 | dict(in_channels=8),
    vae=factory.VAE_SD,
    text=factory.TEXT_SD15,
    pixels=256,
    frames=2,
    steps=2,
)
SIZES = dict(embedded=EMBEDDED, sd15=SD15)
INSTRUCTION = "make the red shape green"


def unet_evaluation(pipe, stock, size, repeats):
    """Times three branches of one clip through the U-Net."""
    K, T, side = 3, size["frames"], size["pixels"] // pipe.folder.vae.downscale
    rng = np.random.default_rng(0)
    x = rng.standard_normal((K, T, side, side, 8), np.float32)
    text = rng.standard_normal((K, 77, pipe.folder.unet.cross_attention_dim), np.float32)
    net = InflatedUNet3D(pipe.folder.unet, dtype=pipe.dtype)
    run = runtime.jit(
        lambda params, x, cond: net.apply({"params": params}, x, jnp.full((K,), 500.0), cond.text)
    )
    cond = jax.device_put(Condition(text, x))
    x_torch = factory.to_torch_frames(x).to(stock.device, stock.dtype)
    text_torch = torch.from_numpy(np.repeat(text, T, axis=0)).to(stock.device, stock.dtype)

    def theirs():
        with torch.no_grad():
            out = stock.unet(x_torch, 500, text_torch).sample
        sync()
        return out

    def ours():
        return run(pipe.params["unet"], cond.source, cond).block_until_ready()

    times = turns(ours, theirs, repeats)
    reference = theirs().float().cpu().numpy().transpose(0, 2, 3, 1)
    difference = factory.relative_difference(ours().reshape(K * T, side, side, 4), reference)
    return times | {"relative_difference": difference}


def whole_edit(pipe, stock, size, repeats):
    """Times encoding, sampling with three branches, and decoding.

    diffusers gets the frames as a batch of images.
    """
    T, side = size["frames"], size["pixels"]
    frames = np.random.default_rng(0).integers(0, 256, (T, side, side, 3), np.uint8)
    settings = EditSettings(steps=size["steps"], size=side, frames=T).resolve(pipe.folder)
    fit = ResizePlan.plan((side, side), side, pipe.factor)
    images = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()).float() / 255.0

    def ours():
        return np.stack(list(pipe.edit_frames(frames, INSTRUCTION, settings, fit)))

    def theirs():
        result = stock(
            prompt=[INSTRUCTION] * T,
            image=images,
            num_inference_steps=size["steps"],
            guidance_scale=7.5,
            image_guidance_scale=1.5,
            output_type="np",
        )
        sync()
        return result.images

    return turns(ours, theirs, repeats) | {"steps": size["steps"], "frames": T, "pixels": side}


def host_share(pipe, size, repeats):
    """The host's share of the time of a sampling step.

    Dispatch is asynchronous, so the host's time is the time until the call returns.
    """
    T, side, steps = size["frames"], size["pixels"] // pipe.folder.vae.downscale, 20
    source = np.zeros((T, side, side, 4), np.float32)
    settings = EditSettings(steps=steps, sampler="ddim", frames=T).resolve(pipe.folder)
    guidance = pipe.guidance(INSTRUCTION, settings)
    table = make_sampler("ddim", pipe.schedule, steps)
    times = []
    for _ in range(repeats + 1):
        loop = pipe.sampling_loop(pipe.params["unet"], source, guidance, table, 0, [slice(0, T)])
        next(loop)
        start = time.perf_counter()
        for _ in range(steps - 1):
            next(loop)
        dispatched = time.perf_counter()
        next(loop)  # waits for the device and fetches the latents
        finished = time.perf_counter()
        times.append(((dispatched - start) / (steps - 1), (finished - start) / (steps - 1)))
    host, step = np.median(times[1:], axis=0)  # the first pass compiles
    return dict(host_s=float(host), step_s=float(step), share=float(host / step))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="embedded")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--frames", type=int, help="frames of the clip (default: by --size)")
    parser.add_argument("--pixels", type=int, help="pixels of a frame's side (default: by --size)")
    args = parser.parse_args(argv)
    changes = {"frames": args.frames, "pixels": args.pixels}
    size = SIZES[args.size] | {name: value for name, value in changes.items() if value}
    parts = dict(
        unet=factory.unet(size["unet"]),
        vae=factory.vae(size["vae"]),
        text_encoder=factory.text_encoder(size["text"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = factory.save_pipeline(Path(folder) / "model", parts | dict(scheduler=factory.ddim()))
        pipe = ivid2vid_jax.load(path)
        stock = StableDiffusionInstructPix2PixPipeline(
            **parts,
            scheduler=factory.ddim(),
            tokenizer=pipe.tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    if torch.cuda.is_available():
        stock.to("cuda", torch.bfloat16)
    stock.set_progress_bar_config(disable=True)
    report = dict(
        device=jax.devices()[0].device_kind,
        threads=torch.get_num_threads(),
        jax=jax.__version__,
        torch=torch.__version__,
        size=args.size,
    )
    print(json.dumps(report))
    print(json.dumps({"unet": unet_evaluation(pipe, stock, size, args.repeats)}))
    if args.size == "embedded":
        print(json.dumps({"host": host_share(pipe, size, args.repeats)}))
    print(json.dumps({"edit": whole_edit(pipe, stock, size, args.repeats)}))


if __name__ == "__main__":
    main()

"""Tune-A-Video against the same architecture in PyTorch.

Times one step of tuning, of inversion and of guided sampling, and from them the time per clip:

    python -m tests.benchmarks.tune_a_video
    python -m tests.benchmarks.tune_a_video --base sd-folder --frames 8 --pixels 256

Both sides run alternately in one process, with the same number of threads and weights of the same
shapes; a ratio above 1 means that JAX is faster. PyTorch runs the U-Net of our exports with
channels last, scaled-dot-product attention, and torch.compile where it works; float32 on a CPU,
bfloat16 on a GPU. The autoencoder and the text encoder, which run once per clip, are not timed.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from ivid2vid_jax.diffusion.inversion import inversion_steps
from ivid2vid_jax.diffusion.samplers import make_sampler, sampler_steps
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.inference.sampling_loop import SamplerState
from ivid2vid_jax.synthesis.editors import TRAINED, TuneAVideo, TuneAVideoConfig
from ivid2vid_jax.training.params import trainable
from tests.benchmarks import torch_side
from tests.benchmarks.turns import sync, turns


class TorchSteps:
    """The three steps in PyTorch.

    Latents x are [1, C, T, h, w]; text is [2, K, D], of the empty prompt and of the clip's caption.
    """

    def __init__(
        self, net, config: TuneAVideoConfig, alphas_cumprod: np.ndarray, x, text, dtype: torch.dtype
    ):
        self.net, self.config, self.x, self.text, self.dtype = net, config, x, text, dtype
        self.run = net
        self.device = x.device.type
        self.alphas = torch.tensor(alphas_cumprod, dtype=torch.float32, device=self.device)
        parameters = {name.replace(".", "/"): p for name, p in net.named_parameters()}
        self.trained = [parameters[name] for name in sorted(trainable(parameters, TRAINED))]
        net.requires_grad_(False)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.trained, config.lr, weight_decay=config.weight_decay, fused=self.device != "cpu"
        )

    def predict(self, x, t, text):
        torch.compiler.cudagraph_mark_step_begin()
        with torch_side.precision(self.dtype, self.device):
            return self.run(x, t.expand(len(x)), text).sample.float()

    def tune(self):
        t = torch.randint(0, len(self.alphas), (1,), device=self.device)
        noise = torch.randn_like(self.x)
        alpha_bar = self.alphas[t].view(1, 1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * self.x + (1 - alpha_bar).sqrt() * noise
        (self.predict(x_t, t, self.text[1:]) - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sync()

    @torch.no_grad()
    def ddim_update(self, prediction, alpha_bar, next_alpha_bar):
        x0 = (self.x - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
        x = next_alpha_bar.sqrt() * x0 + (1 - next_alpha_bar).sqrt() * prediction
        sync()
        return x

    @torch.no_grad()
    def invert(self):
        t = torch.full((1,), 500, device=self.device)
        prediction = self.predict(self.x, t, self.text[1:])
        return self.ddim_update(prediction, self.alphas[480], self.alphas[500])

    @torch.no_grad()
    def sample(self):
        t = torch.full((1,), 500, device=self.device)
        x = self.x.expand(2, *self.x.shape[1:])
        empty, conditioned = self.predict(x, t, self.text).chunk(2)
        prediction = empty + self.config.text_scale * (conditioned - empty)
        return self.ddim_update(prediction, self.alphas[500], self.alphas[480])

    def use(self, net):
        """Switches to this form of the network and runs every step once."""
        self.run = net
        for step in (self.tune, self.invert, self.sample):
            step()


def jax_steps(editor: TuneAVideo, latents: np.ndarray, text: np.ndarray) -> dict[str, Callable]:
    """The three steps as closures that wait for their result.

    Latents are [1, T, h, w, C]; text is [2, K, D], of the empty prompt and of the clip's caption.
    """
    base, config = editor.base_on_devices, editor.config
    keys, x, caption, both = editor.put(
        (jnp.stack([jax.random.key(0)]), latents, text[1:], text[None])
    )
    tuned = editor.put({name: value[None] for name, value in editor.trained.items()})
    state = {"tuned": tuned, "optimizer": editor.put(jax.vmap(editor.optimizer.init)(tuned))}
    inversion_step = jax.device_put(
        inversion_steps(editor.schedule, config.inversion)[config.inversion // 2]
    )
    table = make_sampler("ddim", editor.schedule, config.sampling)
    sampling_step = list(sampler_steps(table))[config.sampling // 2]
    weights = jnp.asarray([1 - config.text_scale, config.text_scale])

    def tune():
        state["tuned"], state["optimizer"] = editor.jit_tune_step(
            base, state["tuned"], state["optimizer"], x, caption, keys, np.int32(0)
        )
        jax.block_until_ready(state)

    def invert():
        noise = jnp.copy(x)
        jax.block_until_ready(
            editor.jit_inversion_step(base, state["tuned"], noise, caption, inversion_step)
        )

    def sample():
        start = SamplerState(x, jnp.zeros_like(x))
        jax.block_until_ready(
            editor.jit_sample_step(base, state["tuned"], start, both, keys, sampling_step, weights)
        )

    return dict(tune=tune, invert=invert, sample=sample)


def compare(base: str, frames: int, pixels: int | None, repeats: int, mode: str) -> dict:
    """Results by name: about the machine, the shape, each step, and a whole clip."""
    pipe, config = pipeline.load(base, devices=1), TuneAVideoConfig()
    editor = TuneAVideo(pipe, config, devices=1)
    unet = dataclasses.replace(pipe.folder.unet, **editor.changes)
    size = pixels or pipeline.EditSettings().resolve(pipe.folder).size
    side = size // pipe.folder.vae.downscale
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, frames, side, side, unet.in_channels), np.float32)
    text = rng.standard_normal((2, 77, unet.cross_attention_dim), np.float32)

    net = torch_side.random_net(unet, device)
    torch_steps = TorchSteps(
        net,
        config,
        editor.schedule.alphas_cumprod,
        torch_side.channels_first(latents, device),
        torch.from_numpy(text).to(device),
        dtype,
    )
    trained = check_trained(torch_steps, editor)
    torch_steps.use(torch_side.compiled(net, mode))
    steps = {
        name: turns(step, getattr(torch_steps, name), repeats)
        for name, step in jax_steps(editor, latents, text).items()
    }
    about = dict(
        device=jax.devices()[0].device_kind,
        threads=torch.get_num_threads(),
        jax=jax.__version__,
        torch=torch.__version__,
        torch_compile=mode,
    )
    clip = time_per_clip(steps, config)
    return dict(about=about, shape=list(latents.shape), trained=trained, **steps, clip=clip)


def check_trained(torch_steps: TorchSteps, editor: TuneAVideo) -> int:
    """The number of trained parameters. Raises AssertionError if the sides differ."""
    theirs = sum(parameter.numel() for parameter in torch_steps.trained)
    ours = sum(value.size for value in editor.trained.values())
    if theirs != ours:
        raise AssertionError(f"PyTorch trains {theirs} parameters, we {ours}")
    return ours


def time_per_clip(steps: dict[str, dict], config: TuneAVideoConfig) -> dict:
    """Seconds of all steps that the config takes for a clip."""
    counts = dict(tune=config.steps, invert=config.inversion, sample=config.sampling)
    ours, theirs = (
        sum(count * steps[name][key] for name, count in counts.items())
        for key in ("ours_s", "torch_s")
    )
    return dict(**counts, ours_s=ours, torch_s=theirs, ratio=theirs / ours)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="shapes-base")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--pixels", type=int, help="pixels per side instead of the base's own")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compile", choices=torch_side.MODES, default="max-autotune")
    args = parser.parse_args(argv)
    results = compare(args.base, args.frames, args.pixels, args.repeats, args.compile)
    for name, result in results.items():
        print(json.dumps({name: result}))


if __name__ == "__main__":
    main()

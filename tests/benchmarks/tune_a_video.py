"""Tune-A-Video against the same architecture in PyTorch: a step of tuning, of inversion and of guided sampling, and from them the time of a clip.

    python -m tests.benchmarks.tune_a_video
    python -m tests.benchmarks.tune_a_video --base sd-folder --frames 8 --pixels 256

Both sides run in turns in one process, with the same threads and equally shaped weights; a ratio above 1 means that we are faster. PyTorch runs the net that our
exports ship, channels last, scaled-dot-product attention, torch.compile where it works; float32 on a CPU, bfloat16 on a GPU. What both
sides do once a clip, the autoencoder and the text encoder, is left out.
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


class Torch:
    """The three steps in PyTorch; x: [1, C, T, h, w], text: [2, K, D] of the empty prompt and of the clip's."""

    def __init__(
        self,
        net,
        config: TuneAVideoConfig,
        alphas_cumprod: np.ndarray,
        x,
        text,
        dtype: torch.dtype,
        device: str,
    ):
        self.net, self.config, self.x, self.text, self.dtype, self.device = (
            net,
            config,
            x,
            text,
            dtype,
            device,
        )
        self.alphas = torch.tensor(alphas_cumprod, dtype=torch.float32, device=device)
        parameters = {name.replace(".", "/"): p for name, p in net.named_parameters()}
        self.trained = [parameters[name] for name in sorted(trainable(parameters, TRAINED))]
        net.requires_grad_(False)
        for p in self.trained:
            p.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.trained, config.lr, weight_decay=config.weight_decay, fused=device != "cpu"
        )

    def predict(self, x, t, text):
        torch.compiler.cudagraph_mark_step_begin()
        with torch_side.precision(self.dtype, self.device):
            return self.run(x, t.expand(len(x)), text).sample.float()

    def tune(self):
        t, noise = (
            torch.randint(0, len(self.alphas), (1,), device=self.device),
            torch.randn_like(self.x),
        )
        alpha_bar = self.alphas[t].view(1, 1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * self.x + (1 - alpha_bar).sqrt() * noise
        (self.predict(x_t, t, self.text[1:]) - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sync()

    @torch.no_grad()
    def moved(self, prediction, a, b):
        x0 = (self.x - (1 - a).sqrt() * prediction) / a.sqrt()
        moved = b.sqrt() * x0 + (1 - b).sqrt() * prediction
        sync()
        return moved

    @torch.no_grad()
    def invert(self):
        t = torch.full((1,), 500, device=self.device)
        return self.moved(
            self.predict(self.x, t, self.text[1:]), self.alphas[480], self.alphas[500]
        )

    @torch.no_grad()
    def sample(self):
        t = torch.full((1,), 500, device=self.device)
        empty, told = self.predict(self.x.expand(2, *self.x.shape[1:]), t, self.text).chunk(2)
        return self.moved(
            empty + self.config.text_scale * (told - empty), self.alphas[500], self.alphas[480]
        )

    def all(self, net):
        """Every step once with this net, which is kept."""
        self.run = net
        for step in (self.tune, self.invert, self.sample):
            step()


def our_steps(editor: TuneAVideo, latents: np.ndarray, text: np.ndarray) -> dict[str, Callable]:
    """Closures that wait for their result; latents: [1, T, h, w, C], text: [2, K, D]."""
    base, config = editor.placed, editor.config
    keys, x, told, both = editor.put(
        (jnp.stack([jax.random.key(0)]), latents, text[1:], text[None])
    )
    state = {"tuned": editor.put({name: value[None] for name, value in editor.trained.items()})}
    state["optimizer"] = editor.put(jax.vmap(editor.optimizer.init)(state["tuned"]))
    rise_row = jax.device_put(
        inversion_steps(editor.schedule, config.inversion)[config.inversion // 2]
    )
    step_row = list(sampler_steps(make_sampler("ddim", editor.schedule, config.sampling)))[
        config.sampling // 2
    ]
    weights = jnp.asarray([1 - config.text_scale, config.text_scale])

    def tune():
        state["tuned"], state["optimizer"] = editor.tune_step(
            base, state["tuned"], state["optimizer"], x, told, keys, np.int32(0)
        )
        jax.block_until_ready(state)

    def invert():
        jax.block_until_ready(editor.rise_step(base, state["tuned"], jnp.copy(x), told, rise_row))

    def sample():
        jax.block_until_ready(
            editor.sample_step(
                base,
                state["tuned"],
                SamplerState(x, jnp.zeros_like(x)),
                both,
                keys,
                step_row,
                weights,
            )
        )

    return dict(tune=tune, invert=invert, sample=sample)


def compare(base: str, frames: int, pixels: int | None, repeats: int, mode: str) -> dict:
    pipe, config = pipeline.load(base, devices=1), TuneAVideoConfig()
    editor = TuneAVideo(pipe, config, devices=1)
    net_config, side = (
        dataclasses.replace(pipe.folder.unet, **editor.changes),
        (pixels or pipeline.EditSettings().resolve(pipe.folder).size) // pipe.folder.vae.downscale,
    )
    rng, (gpu, dtype) = (
        np.random.default_rng(0),
        ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32),
    )
    latents = rng.standard_normal((1, frames, side, side, net_config.in_channels), np.float32)
    text = rng.standard_normal((2, 77, net_config.cross_attention_dim), np.float32)
    net = torch_side.random_net(net_config, gpu)
    theirs = Torch(
        net,
        config,
        editor.schedule.alphas_cumprod,
        torch_side.channels_first(latents, gpu),
        torch.from_numpy(text).to(gpu),
        dtype,
        gpu,
    )
    counted = (
        sum(p.numel() for p in theirs.trained),
        sum(value.size for value in editor.trained.values()),
    )
    if counted[0] != counted[1]:
        raise AssertionError(f"PyTorch trains {counted[0]} parameters, we {counted[1]}")
    _, how = torch_side.compiled(net, mode, theirs.all)
    ours = our_steps(editor, latents, text)
    found = {name: turns(ours[name], getattr(theirs, name), repeats) for name in ours}
    counts = dict(tune=config.steps, invert=config.inversion, sample=config.sampling)
    clip = {
        side: sum(counts[name] * found[name][f"{side}_s"] for name in counts)
        for side in ("ours", "torch")
    }
    about = dict(
        device=jax.devices()[0].device_kind,
        threads=torch.get_num_threads(),
        jax=jax.__version__,
        torch=torch.__version__,
        torch_side=how,
    )
    whole = dict(
        **counts, ours_s=clip["ours"], torch_s=clip["torch"], ratio=clip["torch"] / clip["ours"]
    )
    return dict(about=about, shape=list(latents.shape), trained=counted[0], **found, clip=whole)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="shapes-base")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--pixels", type=int, help="pixels a side instead of the base's own")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compile", choices=torch_side.MODES, default=torch_side.MODES[0])
    args = parser.parse_args(argv)
    for name, found in compare(
        args.base, args.frames, args.pixels, args.repeats, args.compile
    ).items():
        print(json.dumps({name: found}))


if __name__ == "__main__":
    main()

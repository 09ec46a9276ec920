"""The denoising objective on tiny networks, with a function instead of the U-Net."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from ivid2vid_jax.diffusion.losses import LossConfig
from ivid2vid_jax.training import init_state
from ivid2vid_jax.training.config import CondDropoutConfig, TrainConfig
from ivid2vid_jax.training.objectives import make_objective
from ivid2vid_jax.training.params import flatten, unflatten
from ivid2vid_jax.training.train_setup import Tokenizer
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder, param_shapes
from ivid2vid_jax.weights.tokenizer import load_tokenizer
from tests.support.tiny_run import tiny

# Scaling factor of the tiny autoencoder's latents: not 1, so that leaving it out, or applying it
# twice, fails a test.
SCALING = 0.37
KEY = random.key_data(random.key(5))
DEFAULT_LOSS = LossConfig()


def random_params(shapes: dict[str, Any], rng: np.random.Generator) -> dict[str, jax.Array]:
    """Random values for named parameters, none of them zero.

    Temporal layers start with zero projections, which would hide everything before them.
    """

    def values(name, shape):
        noise = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("scale"):
            return 1 + 0.1 * noise
        return 0.1 * noise if len(shape) == 1 else noise / np.sqrt(np.prod(shape[:-1]))

    return {name: jnp.asarray(values(name, leaf.shape)) for name, leaf in shapes.items()}


def fake_unet(x_t, t, cond):
    """A prediction that depends on every input of the U-Net."""
    offset = jnp.sin(t) + cond.text.mean((1, 2))
    source = 0.0 if cond.source is None else 0.2 * cond.source
    return 0.3 * x_t + source + 0.1 * offset.reshape(-1, 1, 1, 1, 1)


@dataclasses.dataclass
class TinyObjective:
    """A tiny config, its networks with random weights (without U-Net), and a batch of pixels."""

    config: TrainConfig
    folder: PipelineFolder
    params: dict
    null: np.ndarray  # tokens of the empty text
    batch: dict

    def objective(self, null=None, **changes):
        """The objective; changes: as for `tiny`."""
        config = dataclasses.replace(tiny(self.config.output, **changes), net=self.config.net)
        return make_objective(config, self.folder, self.null if null is None else null, jnp.float32)

    @functools.cached_property
    def program(self):
        """The objective with `fake_unet`, compiled once for each shape of batch."""

        def run(params, batch, keys, null, alpha_bar, drop, t, train, loss):
            inputs = {}

            def unet(params, x_t, t, cond, rngs):
                inputs.update(x_t=x_t, t=t, text=cond.text, source=cond.source)
                return fake_unet(x_t, t, cond)

            objective = self.objective(null, loss=loss, drop=CondDropoutConfig(*drop))
            objective.denoise = objective.denoise_train = unet
            objective.alphas_cumprod = alpha_bar
            return objective.losses(params, batch, keys, train, t), inputs

        return jax.jit(run, static_argnames=("train", "loss"))

    def losses_and_inputs(
        self,
        batch,
        keys,
        null=None,
        alpha_bar=None,
        drop=(0.05, 0.05, 0.05),
        t=None,
        train=True,
        loss=DEFAULT_LOSS,
    ):
        """(losses, the inputs that the U-Net got)."""
        return jax.device_get(
            self.program(
                self.params | {"unet": {}},
                batch,
                keys,
                self.null if null is None else null,
                self.objective().alphas_cumprod if alpha_bar is None else alpha_bar,
                drop,
                t,
                train=train,
                loss=loss,
            )
        )


def make_tiny_objective(run: Path) -> TinyObjective:
    """Networks of one level and a batch of 8 clips of 2 frames of 16 x 16 pixels."""
    rng = np.random.default_rng(0)
    config = tiny(run)
    unet = dataclasses.replace(
        config.net.unet,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
    )
    vae = dataclasses.replace(config.net.vae, scaling_factor=SCALING)
    config = dataclasses.replace(config, net=dataclasses.replace(config.net, unet=unet, vae=vae))
    folder, _ = init_state.plan_networks(config, lambda: ["make the red circle blue"], run)
    tokenize = Tokenizer(
        load_tokenizer(run / "tokenizer"), folder.text_encoder.max_position_embeddings
    )
    params = {
        name: unflatten(random_params(flatten(param_shapes(name, getattr(folder, name))), rng))
        for name in ("vae", "text_encoder")
    }
    texts = [
        "make the circle blue",
        "red",
        "make it red",
        "blue circle",
        "the the",
        "make",
        "circle red",
        "make the red blue",
    ]
    source, edited = rng.integers(0, 256, (2, 8, 2, 16, 16, 3)).astype(np.uint8)
    batch = {
        "source": source,
        "edited": edited,
        "tokens": np.stack([tokenize(text) for text in texts]),
        "serial": np.arange(8, dtype=np.uint32),
    }
    return TinyObjective(config, folder, params, tokenize(""), batch)


def cached_batch(count: int, **changes) -> dict:
    """Cached latents of one pixel: a cheap batch of many clips.

    The source is 1, the target 0 with std 0, the text 7.
    """
    latents = np.ones((count, 2, 1, 1, 4), np.float32)
    batch = {
        "source_mean": latents,
        "target_mean": 0 * latents,
        "target_std": 0 * latents,
        "text": np.full((count, 2, 16), 7.0, np.float32),
    }
    return batch | {"serial": np.arange(count, dtype=np.uint32)} | changes

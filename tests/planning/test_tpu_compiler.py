"""One layer by the real TPU compiler, which needs no TPU: what it holds, what it moves, and that no scores of attention are among it."""

import importlib.util
import math
import os

import jax
import jax.numpy as jnp
import pytest

from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.models.temporal import TemporalTransformer
from ivid2vid_jax.models.transformer import SpatialTransformer
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.planning import chips, hlo, stages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None,
        reason='the TPU compiler is not here: pip install "jax[tpu]", or TPU_LIBRARY_PATH=.../libtpu.so',
    ),
]
FRAMES, SIDE, HEADS, WIDTH = 2, 64, 8, 320
TOKENS = SIDE**2
SCORES = FRAMES * HEADS * TOKENS**2 * 2  # bytes, in bfloat16


@pytest.fixture
def texts(monkeypatch):
    """What the compiler wrote, of one program after the other."""
    found, moved = [], hlo.moved
    monkeypatch.setattr(hlo, "moved", lambda text: found.append(text) or moved(text))
    return found


@pytest.fixture
def compiled(texts):
    """(cost, the compiler's text) of SD 1.5's first spatial transformer on one v5e chip; remat: None for the forward pass alone."""
    mesh = make_mesh(MeshConfig(), chips.TPUSlice("v5e:1x1").devices())
    shape = jax.ShapeDtypeStruct

    def compile(attention: str, remat: str | None):
        x, text = shape((1, FRAMES, SIDE, SIDE, 8), jnp.bfloat16), shape((1, 77, 768), jnp.bfloat16)
        found = stages.stages(
            UNetConfig(in_channels=8), x, text, ("unet",) if remat else (), attention
        )
        stage = next(each for each in found if isinstance(each.module, SpatialTransformer))
        assert stage.path == "down_blocks.0/attentions.0" and stage.args[0].shape == (
            1,
            FRAMES,
            SIDE,
            SIDE,
            WIDTH,
        )
        return stages.compile_stage(stage, mesh, remat), texts.pop()

    return compile


def scores(text: str) -> list[str]:
    """The arrays of tokens x tokens."""
    return [
        sides
        for _, sides, _, _ in hlo.ARRAY.findall(text)
        if sides.split(",").count(str(TOKENS)) > 1
    ]


def test_no_scores_of_4096_tokens_are_held_forward_or_backward(compiled):
    cost, text = compiled("auto", "block")
    assert "tpu_custom_call" in text and not scores(text)
    assert cost.temporary < SCORES
    clip = FRAMES * TOKENS * WIDTH * 2  # bytes
    weights = (
        4 * 4 * (9 * WIDTH**2 + 4 * WIDTH * 768 + 12 * WIDTH**2)
    )  # float32, read, and their gradients written, with room for casts
    assert 10 * clip < cost.moved < 250 * clip + weights
    assert cost.kept == pytest.approx(
        clip, rel=0.2
    )  # with "block", the layer's input alone, and the text
    products = 2 * 2 * HEADS * FRAMES * TOKENS**2 * 40
    assert cost.flops > 4 * products  # forward twice, backward


def test_plain_attention_holds_them(compiled):
    """What the test above would see."""
    cost, text = compiled("xla", None)
    assert scores(text) and math.isfinite(cost.moved) and cost.temporary + cost.moved > SCORES


def test_split_weights_are_gathered_whole(texts):
    """By itself the compiler multiplies by them piece by piece, in loops that move all activations at every turn: on 16 chips 52 GB a
    clip instead of 10.
    """
    mesh = make_mesh(MeshConfig(fsdp=4), chips.TPUSlice("v5e:2x2").devices())
    x = jax.ShapeDtypeStruct((4, 16, SIDE, SIDE, WIDTH), jnp.bfloat16)
    layer = stages.LayerStage(
        TemporalTransformer(HEADS, WIDTH // HEADS, 32, jnp.bfloat16), "transformer_in", (x,), True
    )
    cost = stages.compile_stage(layer, mesh, "block")
    assert cost.sent["all-gather"] and " while(" not in texts[0]
    assert cost.moved < 15e9

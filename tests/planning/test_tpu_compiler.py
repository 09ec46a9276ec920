"""Layers compiled by the real TPU compiler, which needs no TPU: memory, HBM traffic, attention."""

import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.temporal import TemporalTransformer
from ivid2vid_jax.models.transformer import SpatialTransformer
from ivid2vid_jax.parallel import runtime, sharding
from ivid2vid_jax.parallel.mesh import MeshConfig, make_mesh
from ivid2vid_jax.planning import chips, hlo, stages
from tests.support.tiny_run import ONE_LEVEL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: pip install 'jax[tpu]', or set TPU_LIBRARY_PATH",
    ),
]
FRAMES, SIDE, HEADS, WIDTH = 2, 64, 8, 320
TOKENS = SIDE**2
LOGITS = FRAMES * HEADS * TOKENS**2 * 2  # bytes, in bfloat16


@pytest.fixture
def program_texts(monkeypatch):
    """The HLO texts of the programs compiled so far."""
    texts, hbm_bytes = [], hlo.hbm_bytes
    monkeypatch.setattr(hlo, "hbm_bytes", lambda text: texts.append(text) or hbm_bytes(text))
    return texts


@pytest.fixture
def compile_attention(program_texts):
    """Compiles SD 1.5's first spatial transformer for one v5e chip; returns (cost, HLO text)."""
    mesh = make_mesh(MeshConfig(), chips.TPUSlice("v5e:1x1").devices())
    x = jax.ShapeDtypeStruct((1, FRAMES, SIDE, SIDE, 8), jnp.bfloat16)
    text = jax.ShapeDtypeStruct((1, 77, 768), jnp.bfloat16)

    def compile(attention: str, remat: str | None):
        config, trained = UNetConfig(in_channels=8), ("unet",) if remat else ()
        layers = stages.find_stages(config, x, text, trained, attention)
        stage = next(layer for layer in layers if isinstance(layer.module, SpatialTransformer))
        assert stage.path == "down_blocks.0/attentions.0"
        assert stage.args[0].shape == (1, FRAMES, SIDE, SIDE, WIDTH)
        return stages.compile_stage(stage, mesh, remat), program_texts.pop()

    return compile


def logits_arrays(text: str) -> list[str]:
    """The shapes of the arrays of tokens x tokens."""
    shapes = [shape for _, shape, _, _ in hlo.ARRAY.findall(text)]
    return [shape for shape in shapes if shape.split(",").count(str(TOKENS)) > 1]


def test_attention_logits_of_4096_tokens_are_never_stored(compile_attention):
    """Neither forward nor backward."""
    cost, text = compile_attention("auto", "block")
    assert "tpu_custom_call" in text and not logits_arrays(text)
    assert cost.temporary_bytes < LOGITS
    clip = FRAMES * TOKENS * WIDTH * 2  # bytes
    # float32 weights are read and their gradients written, with room for casts
    weights = 4 * 4 * (9 * WIDTH**2 + 4 * WIDTH * 768 + 12 * WIDTH**2)
    assert 10 * clip < cost.hbm_bytes < 250 * clip + weights
    # with "block" only the input of the layer and the text are kept
    assert cost.residual_bytes == pytest.approx(clip, rel=0.2)
    products = 2 * 2 * HEADS * FRAMES * TOKENS**2 * 40
    assert cost.flops > 4 * products  # forward twice, backward


def test_plain_attention_stores_them(compile_attention):
    """The test above would fail with plain attention."""
    cost, text = compile_attention("xla", None)
    assert logits_arrays(text) and math.isfinite(cost.hbm_bytes)
    assert cost.temporary_bytes + cost.hbm_bytes > LOGITS


def test_sharded_weights_are_gathered_whole(program_texts):
    """The compiler's default gathers them piece by piece, in loops that move all activations.

    On 16 chips that moved 52 GB per clip instead of 10 GB.
    """
    mesh = make_mesh(MeshConfig(fsdp=4), chips.TPUSlice("v5e:2x2").devices())
    x = jax.ShapeDtypeStruct((4, 16, SIDE, SIDE, WIDTH), jnp.bfloat16)
    module = TemporalTransformer(HEADS, WIDTH // HEADS, 32, jnp.bfloat16)
    stage = stages.LayerStage(module, "transformer_in", (x,), True)
    cost = stages.compile_stage(stage, mesh, "block")
    assert cost.sent["all-gather"] and " while(" not in program_texts[0]
    assert cost.hbm_bytes < 15e9


@pytest.mark.parametrize(("dtype", "exact"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_products_of_a_float32_network_reach_the_compiler_as_exact(dtype, exact):
    """Forward and backward, of a network that is lowered for a TPU; its attention kernels too."""
    mesh = make_mesh(MeshConfig(), chips.TPUSlice("v5e:1x1").devices())
    replicated = sharding.replicated(mesh)
    net = InflatedUNet3D(ONE_LEVEL.unet, "splash", "block", dtype)
    shapes = (1, 2, 16, 16, 4), (1,), (1, 16, ONE_LEVEL.unet.cross_attention_dim)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated) for shape in shapes]
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        jax.eval_shape(net.init, jax.random.key(0), *inputs),
    )
    with jax.set_mesh(mesh):
        loss = jax.grad(lambda params, *inputs: jnp.sum(net.apply(params, *inputs)))
        lowered = runtime.jit(loss, mesh.devices.flat[0]).trace(params, *inputs).lower()
        text = lowered.as_text()
        assert text.count("tpu_custom_call") > 3
        if exact:
            lowered.compile(compiler_options={stages.EFFORT_OPTION: -1.0})
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)
    exact_products = [line for line in products if re.search(r"HIGHEST.*HIGHEST", line)]
    assert len(products) > 50 and len(exact_products) == (len(products) if exact else 0)

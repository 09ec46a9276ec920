"""The U-Net against diffusers' 2D and 3D ones, and the properties of inflation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.temporal import TemporalConv1D
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.inflate import inflate_params, unet_param_shapes
from tests.support import factory
from tests.support.devices import FAST_COMPILE_OPTIONS
from tests.support.references import torch

RNG = np.random.default_rng(0)


def load(module, folder: Path):
    """(config, parameters) of a diffusers U-Net, through its own files."""
    module.save_pretrained(folder)
    config = UNetConfig.from_json(read_json(folder / "config.json"))
    return config, components.load_component("unet", folder, unet_param_shapes(config))


def random_inputs(config: UNetConfig, B=2, T=3, side=8, tokens=5):
    """Latents and text embeddings."""
    x = RNG.standard_normal((B, T, side, side, config.in_channels), np.float32)
    return x, RNG.standard_normal((B, tokens, config.cross_attention_dim), np.float32)


def apply(config, params, x, t, context, **options):
    unet = InflatedUNet3D(config, **options)
    return np.asarray(jax.jit(unet.apply)({"params": params}, x, jnp.asarray(t), context))


def apply_2d_reference(module, x, t, context):
    """Diffusers' 2D U-Net, frame by frame."""
    B, T, h, w, _ = x.shape
    with torch.no_grad():
        out = module(
            factory.to_torch_frames(x),
            torch.tensor(np.repeat(t, T)),
            torch.from_numpy(np.repeat(context, T, axis=0)),
        ).sample
    return out.numpy().transpose(0, 2, 3, 1).reshape(B, T, h, w, -1)


@pytest.mark.parametrize("config", [factory.UNET_TINY, factory.UNET_TINY_SD2], ids=["sd1", "sd2"])
@pytest.mark.parametrize(("t", "tokens"), [((0.0, 999.0), 5), ((501.5, 20.0), 77)])
def test_equals_diffusers_2d_frame_by_frame(tmp_path, config, t, tokens):
    module = factory.unet(config)
    ours, params = load(module, tmp_path)
    x, context = random_inputs(ours, tokens=tokens)
    expected = apply_2d_reference(module, x, t, context)
    assert factory.relative_difference(apply(ours, params, x, t, context), expected) <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("config", [factory.UNET_SD15, factory.UNET_SD21], ids=["sd15", "sd21"])
def test_equals_diffusers_2d_at_real_size(tmp_path, config):
    module = factory.unet(config)
    ours, params = load(module, tmp_path)
    x, context = random_inputs(ours, B=1, T=2, side=32, tokens=77)
    expected = apply_2d_reference(module, x, (321.0,), context)
    assert factory.relative_difference(apply(ours, params, x, (321.0,), context), expected) <= 1e-4


def test_equals_diffusers_3d(tmp_path):
    module = factory.unet3d(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    ours, params = load(module, tmp_path)
    assert ours.temporal == ("conv", "attention")
    x, context = random_inputs(ours, T=4)
    with torch.no_grad():
        clip = torch.from_numpy(x.transpose(0, 4, 1, 2, 3).copy())
        output = module(clip, torch.tensor([7.0, 800.0]), torch.from_numpy(context))
    expected = output.sample.numpy().transpose(0, 2, 3, 4, 1)
    assert (
        factory.relative_difference(apply(ours, params, x, (7.0, 800.0), context), expected) <= 2e-5
    )


def test_temporal_convolution_of_a_still_image_pads_with_zeros():
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 5, 4), np.float32)
    layer = TemporalConv1D(6, bias_init=jax.nn.initializers.ones)
    params = layer.init(jax.random.key(0), x)
    zeros = np.zeros_like(x)
    expected = layer.apply(params, np.concatenate([zeros, x, zeros], axis=1))[:, 1:2]
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def inflated(tmp_path_factory):
    """(2D config, 2D parameters, 3D config, 3D parameters), from 4 input channels to 8.

    One level, so that it compiles fast.
    """
    module = factory.unet(factory.UNET_TINY | factory.ONE_LEVEL | dict(in_channels=4))
    config, params = load(module, tmp_path_factory.mktemp("unet"))
    target = UNetConfig.from_json(
        config.to_json() | dict(temporal=["conv", "attention"], in_channels=8)
    )
    return config, params, target, inflate_params(params, config, target, 0)


def test_freshly_inflated_equals_2d_and_ignores_the_new_channels(inflated):
    config, params, target, params_3d = inflated
    x, context = random_inputs(target)
    expected = apply(config, params, x[..., :4], (10.0, 700.0), context)
    actual = apply(target, params_3d, x, (10.0, 700.0), context)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def frame_dependencies(config, params, x, context):
    """[T, T]: whether output frame i changes, by a single bit, when input frame j does."""
    unet, T = InflatedUNet3D(config), x.shape[1]

    @jax.jit
    def run(params, x):
        return unet.apply({"params": params}, x, jnp.array([5.0]), context)[0]

    original = run(params, x)
    changed = [run(params, x.at[:, j].add(1.0)) for j in range(T)]
    return np.array([[bool(jnp.any(y[i] != original[i])) for y in changed] for i in range(T)])


def test_frames_are_independent_until_temporal_layers_are_trained(inflated):
    _, _, target, params = inflated
    x, context = random_inputs(target, B=1, T=3, side=4)
    x = jnp.asarray(x)
    np.testing.assert_array_equal(frame_dependencies(target, params, x, context), np.eye(3) == 1)
    trained = jax.tree.map(lambda p: p + 0.01, params)
    assert frame_dependencies(target, trained, x, context).all()


@pytest.mark.slow
def test_gradients_reach_temporal_layers_within_two_steps(inflated):
    _, _, target, params = inflated
    x, context = random_inputs(target, B=1)
    y = RNG.standard_normal((*x.shape[:-1], 4), np.float32)
    t = jnp.array([50.0])

    def loss(params):
        prediction = InflatedUNet3D(target).apply({"params": params}, x, t, context)
        return jnp.square(prediction - y).mean()

    gradient = jax.jit(jax.grad(loss))
    first = gradient(params)
    second = gradient(jax.tree.map(lambda p, g: p - 0.01 * g, params, first))
    conv_gradients = first["down_blocks.0"]["temp_convs.0"]
    assert jnp.abs(conv_gradients["conv4.3"]["kernel"]).max() > 0
    assert jnp.abs(conv_gradients["conv1.2"]["kernel"]).max() == 0, (
        "the zero projection blocks the first step's gradient"
    )
    # Layers other than the temporal ones may have none: with one channel per group, a norm removes
    # the bias before it.
    without_gradient = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(second)
        if not jnp.abs(g).max() > 0
    ]
    temporal = [name for name in without_gradient if "temp" in name or "transformer_in" in name]
    assert not temporal, temporal


def apply_with_remat(config, remat, x, context):
    """params -> prediction."""
    unet = InflatedUNet3D(config, remat=remat)
    return lambda params: unet.apply({"params": params}, x, jnp.array([50.0]), context)


@pytest.mark.slow
def test_remat_does_not_change_loss_and_gradients(inflated):
    _, _, target, params = inflated
    x, context = random_inputs(target, B=1)

    def loss_and_gradients(remat):
        apply = apply_with_remat(target, remat, x, context)
        function = jax.value_and_grad(lambda params: jnp.square(apply(params)).mean())
        return jax.jit(function, compiler_options=FAST_COMPILE_OPTIONS)(params)

    expected_loss, expected = loss_and_gradients("none")
    for remat in ("products", "block"):
        loss, actual = loss_and_gradients(remat)
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)


def test_remat_stores_less(inflated):
    _, _, target, params = inflated
    x, context = random_inputs(target, B=1)

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    def stored(remat):
        """Elements stored for the backward pass, without the parameters."""
        apply = apply_with_remat(target, remat, x, context)
        _, vjp = jax.eval_shape(lambda params: jax.vjp(apply, params), params)
        return size(vjp) - size(params)

    none, products, block = map(stored, ("none", "products", "block"))
    assert block < 0.5 * products < 0.5 * 0.8 * none
    with pytest.raises(ValueError, match="'some' is unknown; choose none, products, block"):
        stored("some")


@pytest.mark.slow
def test_bfloat16_stays_close(inflated):
    _, _, target, params = inflated
    x, context = random_inputs(target)
    expected = apply(target, params, x, (10.0, 700.0), context)
    actual = apply(target, params, x, (10.0, 700.0), context, dtype=jnp.bfloat16)
    assert actual.dtype == np.float32
    assert 0 < factory.relative_difference(actual, expected) < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(class_embed_type="timestep"), "class_embed_type='timestep'"),
        (dict(temporal=["wavelet"]), "wavelet"),
        (dict(attention_head_dim=5), "32 channels of level 0 cannot be split into 5 heads"),
        (dict(block_out_channels=[32]), "1 levels"),
        (dict(group_norm="batch"), "group_norm='batch'"),
        (dict(up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"]), "do not mirror each other"),
    ],
)
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_json(factory.UNET_TINY | change)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8, 4), "8 latent channels, got 4"),
        ((1, 1, 7, 8, 8), "latent size 7x8 is not a multiple of 2"),
    ],
)
def test_wrong_latent_shapes_are_refused(shape, message):
    unet = InflatedUNet3D(UNetConfig.from_json(factory.UNET_TINY))
    with pytest.raises(ValueError, match=message):
        unet.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(1), jnp.zeros((1, 1, 32)))

"""The U-Net against diffusers' 2D and 3D nets, and the properties of inflation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.temporal import TemporalConv1D
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.inflate import inflate_params, unet_param_shapes
from tests.support import factory
from tests.support.devices import OPTIONS

RNG = np.random.default_rng(0)


def load(module, folder: Path):
    """(config, parameters) of a diffusers U-Net, by way of its own files."""
    module.save_pretrained(folder)
    config = UNetConfig.from_json(read_json(folder / "config.json"))
    return config, components.load_component("unet", folder, unet_param_shapes(config))


def inputs(config: UNetConfig, B=2, T=3, side=8, tokens=5):
    x = RNG.standard_normal((B, T, side, side, config.in_channels), np.float32)
    return x, RNG.standard_normal((B, tokens, config.cross_attention_dim), np.float32)


def apply(config, params, x, t, context, **options):
    return np.asarray(
        jax.jit(InflatedUNet3D(config, **options).apply)(
            {"params": params}, x, jnp.asarray(t), context
        )
    )


def reference_2d(module, x, t, context):
    """Diffusers' 2D net, frame by frame."""
    B, T, h, w, _ = x.shape
    with torch.no_grad():
        out = module(
            factory.frames_first(x),
            torch.tensor(np.repeat(t, T)),
            torch.from_numpy(np.repeat(context, T, axis=0)),
        ).sample
    return out.numpy().transpose(0, 2, 3, 1).reshape(B, T, h, w, -1)


@pytest.mark.parametrize("config", [factory.UNET_TINY, factory.UNET_TINY_SD2], ids=["sd1", "sd2"])
@pytest.mark.parametrize(("t", "tokens"), [((0.0, 999.0), 5), ((501.5, 20.0), 77)])
def test_equals_diffusers_2d_frame_by_frame(tmp_path, config, t, tokens):
    module = factory.unet(config)
    ours, params = load(module, tmp_path)
    x, context = inputs(ours, tokens=tokens)
    assert (
        factory.relative(apply(ours, params, x, t, context), reference_2d(module, x, t, context))
        <= 2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("config", [factory.UNET_SD15, factory.UNET_SD21], ids=["sd15", "sd21"])
def test_equals_diffusers_2d_at_real_size(tmp_path, config):
    module = factory.unet(config)
    ours, params = load(module, tmp_path)
    x, context = inputs(ours, B=1, T=2, side=32, tokens=77)
    assert (
        factory.relative(
            apply(ours, params, x, (321.0,), context), reference_2d(module, x, (321.0,), context)
        )
        <= 1e-4
    )


def test_equals_diffusers_3d(tmp_path):
    module = factory.unet3d(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    ours, params = load(module, tmp_path)
    assert ours.temporal == ("conv", "attention")
    x, context = inputs(ours, T=4)
    with torch.no_grad():
        clip = torch.from_numpy(x.transpose(0, 4, 1, 2, 3).copy())
        theirs = (
            module(clip, torch.tensor([7.0, 800.0]), torch.from_numpy(context))
            .sample.numpy()
            .transpose(0, 2, 3, 4, 1)
        )
    assert factory.relative(apply(ours, params, x, (7.0, 800.0), context), theirs) <= 2e-5


def test_a_still_image_is_convolved_in_time_as_between_black_frames():
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 5, 4), np.float32)
    layer = TemporalConv1D(6, bias_init=jax.nn.initializers.ones)
    params = layer.init(jax.random.key(0), x)
    black = np.zeros_like(x)
    between = layer.apply(params, np.concatenate([black, x, black], axis=1))[:, 1:2]
    np.testing.assert_allclose(layer.apply(params, x), between, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def inflated(tmp_path_factory):
    """(2D config, 2D parameters, 3D config, 3D parameters), 4 channels widened to 8; one level, so that it compiles fast."""
    one_level = dict(
        in_channels=4,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    config, params = load(
        factory.unet(factory.UNET_TINY | one_level), tmp_path_factory.mktemp("unet")
    )
    target = UNetConfig.from_json(
        config.to_json() | dict(temporal=["conv", "attention"], in_channels=8)
    )
    return config, params, target, inflate_params(params, config, target, 0)


def test_freshly_inflated_equals_2d_and_ignores_the_new_channels(inflated):
    config, params, target, params_3d = inflated
    x, context = inputs(target)
    flat = apply(config, params, x[..., :4], (10.0, 700.0), context)
    np.testing.assert_allclose(apply(target, params_3d, x, (10.0, 700.0), context), flat, atol=2e-6)


def frame_effect(config, params, x, context):
    """[T, T]: whether output frame i changes, by a single bit, when input frame j does."""
    run = jax.jit(
        lambda x: InflatedUNet3D(config).apply({"params": params}, x, jnp.array([5.0]), context)[0]
    )
    plain = run(x)
    touched = [run(x.at[:, j].add(1.0)) for j in range(x.shape[1])]
    return np.array([[bool(jnp.any(y[i] != plain[i])) for y in touched] for i in range(x.shape[1])])


def test_frames_are_independent_until_temporal_layers_learn(inflated):
    _, _, target, params = inflated
    x, context = inputs(target, B=1, T=3, side=4)
    x = jnp.asarray(x)
    np.testing.assert_array_equal(frame_effect(target, params, x, context), np.eye(3, dtype=bool))
    awake = jax.tree.map(lambda p: p + 0.01, params)
    assert frame_effect(target, awake, x, context).all()


def test_gradients_reach_temporal_layers_within_two_steps(inflated):
    _, _, target, params = inflated
    x, context = inputs(target, B=1)
    goal = RNG.standard_normal((*x.shape[:-1], 4), np.float32)

    @jax.jit
    def gradient(params):
        return jax.grad(
            lambda p: jnp.square(
                InflatedUNet3D(target).apply({"params": p}, x, jnp.array([50.0]), context) - goal
            ).mean()
        )(params)

    first = gradient(params)
    second = gradient(jax.tree.map(lambda p, g: p - 0.01 * g, params, first))
    layer = lambda tree: tree["down_blocks.0"]["temp_convs.0"]  # noqa: E731
    assert jnp.abs(layer(first)["conv4.3"]["kernel"]).max() > 0
    assert jnp.abs(layer(first)["conv1.2"]["kernel"]).max() == 0, (
        "the zero projection holds the first step's gradient back"
    )
    silent = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(second)
        if not jnp.abs(g).max() > 0
    ]
    # an input shift of a group as a whole is removed by the norm behind it; with one channel a group it leaves no gradient
    assert not [name for name in silent if "temp" in name or "transformer_in" in name], silent


def test_remat_changes_nothing(inflated):
    _, _, target, params = inflated
    x, context = inputs(target, B=1)

    def gradient(remat):
        net = InflatedUNet3D(target, remat=remat)
        loss = jax.value_and_grad(
            lambda p: jnp.square(net.apply({"params": p}, x, jnp.array([50.0]), context)).mean()
        )
        return jax.jit(loss, compiler_options=OPTIONS)(params)

    loss, plain = gradient("none")
    for name in ("products", "block"):
        loss_remat, recomputed = gradient(name)
        assert float(loss) == pytest.approx(float(loss_remat), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, recomputed)


def test_remat_keeps_less(inflated):
    """Bytes that wait for the backward pass, weights apart."""
    _, _, target, params = inflated
    x, context = inputs(target, B=1)

    def kept(remat):
        net = InflatedUNet3D(target, remat=remat)
        pull = jax.eval_shape(
            lambda p: jax.vjp(lambda p: net.apply({"params": p}, x, jnp.array([50.0]), context), p)[
                1
            ],
            params,
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull)) - sum(
            leaf.size for leaf in jax.tree.leaves(params)
        )

    none, products, block = map(kept, ("none", "products", "block"))
    assert block < 0.5 * products < 0.5 * 0.8 * none
    with pytest.raises(ValueError, match="'some' is unknown; choose none, products, block"):
        kept("some")


def test_bfloat16_stays_close(inflated):
    _, _, target, params = inflated
    x, context = inputs(target)
    full = apply(target, params, x, (10.0, 700.0), context)
    half = apply(target, params, x, (10.0, 700.0), context, dtype=jnp.bfloat16)
    assert half.dtype == np.float32
    assert 0 < factory.relative(half, full) < 0.03


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
def test_configs_that_cannot_be_computed_are_refused(change, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        UNetConfig.from_json(factory.UNET_TINY | change)


def test_wrong_sizes_are_named():
    config = UNetConfig.from_json(factory.UNET_TINY)
    with pytest.raises(ValueError, match="8 latent channels, got 4"):
        InflatedUNet3D(config).init(
            jax.random.key(0), jnp.zeros((1, 1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 1, 32))
        )
    with pytest.raises(ValueError, match="latent size 7x8 is not a multiple of 2"):
        InflatedUNet3D(config).init(
            jax.random.key(0), jnp.zeros((1, 1, 7, 8, 8)), jnp.zeros(1), jnp.zeros((1, 1, 32))
        )

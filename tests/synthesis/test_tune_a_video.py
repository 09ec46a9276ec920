"""Tune-A-Video's U-Net: against the original's architecture, built from diffusers' layers."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.models.transformer import TransformerBlock
from ivid2vid_jax.weights.inflate import inflate_params, unet_param_shapes
from ivid2vid_jax.weights.torch_keys import torch_key
from tests.support import factory

TUNE_A_VIDEO = dict(
    in_channels=4, temporal=["tune_a_video"], spatial_attention="sparse_causal", group_norm="clip"
)
TARGET = UNetConfig.from_json(factory.UNET_TINY | TUNE_A_VIDEO)
B, T, SIDE = 2, 5, 8


class SparseCausal:
    """A diffusers attention processor: keys and values of frames 0 and max(i-1, 0)."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        def split_heads(x):
            return rearrange(x, "n l (h d) -> n h l d", h=attn.heads)

        def first_and_previous(x):
            x = rearrange(x, "(b f) l c -> b f l c", f=T)
            previous = [max(i - 1, 0) for i in range(T)]
            pairs = torch.cat([x[:, [0] * T], x[:, previous]], dim=2)
            return rearrange(pairs, "b f l c -> (b f) l c")

        q = split_heads(attn.to_q(hidden_states))
        k = split_heads(first_and_previous(attn.to_k(hidden_states)))
        v = split_heads(first_and_previous(attn.to_v(hidden_states)))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](rearrange(out, "n h l d -> n l (h d)"))


def reference(seed=5, **changes):
    """Diffusers' 2D U-Net, changed as Tune-A-Video does, with random weights.

    Transformer blocks attend sparsely and along time; the resnets' norms pool over the frames.
    changes: keys of the net's config.
    """
    net = factory.unet(factory.UNET_TINY | dict(in_channels=4) | changes)
    torch.manual_seed(seed)
    for name, module in list(net.named_modules()):
        if type(module).__name__ == "BasicTransformerBlock":
            width, heads = module.norm1.normalized_shape[0], module.attn1.heads
            module.attn1.set_processor(SparseCausal())
            module.norm_temp = torch.nn.LayerNorm(width)
            module.attn_temp = Attention(width, heads=heads, dim_head=width // heads)
            module.forward = with_temporal_attention(module, module.forward)
        if isinstance(module, torch.nn.GroupNorm) and (
            "resnets" in name or name == "conv_norm_out"
        ):
            module.forward = clip_group_norm(module)
    return factory.randomise(net, seed)


def with_temporal_attention(block, forward):
    def run(hidden_states, *args, **kwargs):
        x = forward(hidden_states, *args, **kwargs)
        h = rearrange(block.norm_temp(x), "(b f) l c -> (b l) f c", f=T)
        return x + rearrange(block.attn_temp(h), "(b l) f c -> (b f) l c", b=x.shape[0] // T)

    return run


def clip_group_norm(norm):
    def run(x):
        y = torch.nn.functional.group_norm(
            rearrange(x, "(b f) c h w -> b c f h w", f=T),
            norm.num_groups,
            norm.weight,
            norm.bias,
            norm.eps,
        )
        return rearrange(y, "b c f h w -> (b f) c h w")

    return run


def jax_params(net, config=TARGET):
    """The weights of a PyTorch U-Net as our tree; asserts that every key is used."""
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    leaves = {}
    for path, leaf in flax.traverse_util.flatten_dict(unet_param_shapes(config)).items():
        value = state.pop(torch_key(path))
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif path[-1] == "kernel":
            value = value.T
        assert value.shape == leaf.shape, path
        leaves[path] = jnp.asarray(value)
    assert not state, list(state)
    return flax.traverse_util.unflatten_dict(leaves)


@pytest.fixture(scope="module")
def inputs():
    """Latents, timesteps, text embeddings."""
    rng = np.random.default_rng(1)
    return (
        rng.standard_normal((B, T, SIDE, SIDE, 4), np.float32),
        np.float32([3, 700]),
        rng.standard_normal((B, 7, 32)).astype(np.float32),
    )


def test_equals_the_original_architecture(inputs):
    x, t, text = inputs
    net = reference()
    with torch.no_grad():
        expected = net(
            factory.to_torch_frames(x),
            torch.from_numpy(repeat(t, "b -> (b f)", f=T)),
            torch.from_numpy(repeat(text, "b k d -> (b f) k d", f=T)),
        ).sample
    actual = jax.jit(InflatedUNet3D(TARGET).apply)({"params": jax_params(net)}, x, t, text)
    actual = rearrange(np.asarray(actual), "b f h w c -> (b f) c h w")
    assert factory.relative_difference(actual, expected.numpy()) < 1e-5


def test_freshly_inflated_it_equals_the_2d_net_on_a_still_clip(inputs):
    """The doubled key cancels in the softmax, and attn_temp starts at zero, weight and bias."""
    x, t, text = inputs
    flat_config = factory.UNET_TINY | factory.ONE_LEVEL | dict(in_channels=4)
    config, target = (UNetConfig.from_json(flat_config | changes) for changes in ({}, TUNE_A_VIDEO))
    params = jax_params(factory.unet(flat_config), config)
    inflated = {"params": inflate_params(params, config, target, seed=0)}
    still = np.repeat(x[:, :1], T, axis=1)
    actual = jax.jit(InflatedUNet3D(target).apply)(inflated, still, t, text)
    one_frame = jax.jit(InflatedUNet3D(config).apply)({"params": params}, x[:, :1], t, text)
    assert factory.relative_difference(actual, np.repeat(one_frame, T, axis=1)) < 1e-5


def test_a_frame_attends_to_the_first_and_the_previous_one_only():
    """With norms per frame, the sparse attention of a block is all that links frames."""
    block = TransformerBlock(heads=2, head_dim=4, sparse_causal=True)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, T, 6, 8)), jnp.float32)
    context = jnp.ones((1, 3, 5))
    params = jax.jit(block.init)(jax.random.key(0), x, context)
    # [T, 1, T, 6, 8]
    jacobian = jax.jit(jax.jacobian(lambda x: block.apply(params, x, context).sum((0, 2, 3))))(x)
    is_linked = np.abs(np.asarray(jacobian)).sum((1, 3, 4)) > 1e-6
    expected = [[j in (0, max(i - 1, 0), i) for j in range(T)] for i in range(T)]
    np.testing.assert_array_equal(is_linked, expected)

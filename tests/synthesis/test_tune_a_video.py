"""Tune-A-Video's net: against a PyTorch one put together from diffusers' layers as the original does, and what it must do by construction."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig
from ivid2vid_jax.weights.inflate import inflate_params, unet_param_shapes
from ivid2vid_jax.weights.torch_keys import torch_key
from tests.support import factory

CONFIG = UNetConfig.from_json(factory.UNET_TINY | dict(in_channels=4))
TARGET = dataclasses.replace(
    CONFIG, temporal=("tune_a_video",), spatial_attention="sparse_causal", group_norm="clip"
)
B, T, SIDE = 2, 5, 8


class SparseCausal:
    """A processor of diffusers' attention: keys and values of frames 0 and max(i-1, 0), projected first, gathered then."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        def heads(x):
            return rearrange(x, "n l (h d) -> n h l d", h=attn.heads)

        def gathered(x):
            x = rearrange(x, "(b f) l c -> b f l c", f=T)
            former = [max(i - 1, 0) for i in range(T)]
            return rearrange(
                torch.cat([x[:, [0] * T], x[:, former]], dim=2), "b f l c -> (b f) l c"
            )

        q, k, v = (
            attn.to_q(hidden_states),
            gathered(attn.to_k(hidden_states)),
            gathered(attn.to_v(hidden_states)),
        )
        out = torch.nn.functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        return attn.to_out[0](rearrange(out, "n h l d -> n l (h d)"))


def reference(seed=5):
    """Diffusers' 2D net with Tune-A-Video's changes: its blocks attend sparsely and along time, its resnets' norms pool over the frames."""
    net = factory.unet(factory.UNET_TINY | dict(in_channels=4))
    torch.manual_seed(seed)
    for name, module in list(net.named_modules()):
        if type(module).__name__ == "BasicTransformerBlock":
            width = module.norm1.normalized_shape[0]
            module.attn1.set_processor(SparseCausal())
            module.norm_temp = torch.nn.LayerNorm(width)
            module.attn_temp = Attention(
                width, heads=module.attn1.heads, dim_head=width // module.attn1.heads
            )
            module.forward = along_time(module, module.forward)
        if isinstance(module, torch.nn.GroupNorm) and (
            "resnets" in name or name == "conv_norm_out"
        ):
            module.forward = pooled(module)
    return factory.randomise(net, seed)


def along_time(block, forward):
    def run(hidden_states, *args, **kwargs):
        x = forward(hidden_states, *args, **kwargs)
        h = rearrange(block.norm_temp(x), "(b f) l c -> (b l) f c", f=T)
        return x + rearrange(block.attn_temp(h), "(b l) f c -> (b f) l c", b=x.shape[0] // T)

    return run


def pooled(norm):
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


def ours(net, config=TARGET):
    """Its weights as our tree, by the one rule, every key on both sides."""
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    leaves = {}
    for path, leaf in flax.traverse_util.flatten_dict(unet_param_shapes(config)).items():
        value = state.pop(torch_key(path))
        value = (
            value.transpose(2, 3, 1, 0)
            if value.ndim == 4
            else value.T
            if path[-1] == "kernel"
            else value
        )
        assert value.shape == leaf.shape, path
        leaves[path] = jnp.asarray(value)
    assert not state, list(state)
    return flax.traverse_util.unflatten_dict(leaves)


@pytest.fixture(scope="module")
def inputs():
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
        theirs = net(
            factory.frames_first(x),
            torch.from_numpy(repeat(t, "b -> (b f)", f=T)),
            torch.from_numpy(repeat(text, "b k d -> (b f) k d", f=T)),
        ).sample
    found = InflatedUNet3D(TARGET).apply({"params": ours(net)}, x, t, text)
    assert (
        factory.relative(rearrange(np.asarray(found), "b f h w c -> (b f) c h w"), theirs.numpy())
        < 1e-5
    )


def test_freshly_inflated_it_shows_equal_frames_as_the_2d_net_shows_one(inputs):
    """The key counted twice cancels in the softmax, and attn_temp starts at zero, weight and bias."""
    x, t, text = inputs
    params = ours(factory.unet(factory.UNET_TINY | dict(in_channels=4)), CONFIG)
    still = np.repeat(x[:, :1], T, axis=1)
    found = InflatedUNet3D(TARGET).apply(
        {"params": inflate_params(params, CONFIG, TARGET, seed=0)}, still, t, text
    )
    one = InflatedUNet3D(CONFIG).apply({"params": params}, x[:, :1], t, text)
    assert factory.relative(found, np.repeat(one, T, axis=1)) < 1e-5


def test_a_frame_sees_the_first_and_the_one_before_alone(inputs):
    """With norms by frame, the sparse attention of one block is all that links frames: frame 2 is seen by frame 3 only, beside itself."""
    from ivid2vid_jax.models.transformer import TransformerBlock

    block = TransformerBlock(heads=2, head_dim=4, sparse_causal=True)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, T, 6, 8)), jnp.float32)
    context = jnp.ones((1, 3, 5))
    params = block.init(jax.random.key(0), x, context)
    seen = jax.jacobian(lambda x: block.apply(params, x, context).sum((0, 2, 3)))(
        x
    )  # [T, 1, T, 6, 8]
    links = np.abs(np.asarray(seen)).sum((1, 3, 4)) > 1e-6
    wanted = [[j in (0, max(i - 1, 0), i) for j in range(T)] for i in range(T)]
    np.testing.assert_array_equal(links, wanted)

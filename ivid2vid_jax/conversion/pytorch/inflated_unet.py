"""Stable Diffusion's U-Net with temporal layers, in PyTorch, for weights from ivid2vid_jax.

It needs torch and diffusers only. Inside the net a clip is [B*T, C, H, W], frame by frame: spatial
layers are those of the 2D net, and temporal layers are given T.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


def by_clip(x, T):
    """[B*T, C, H, W] -> [B, C, T, H, W]."""
    return x.unflatten(0, (-1, T)).transpose(1, 2)


def by_frame(x):
    """[B, C, T, H, W] -> [B*T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def heads_at(config, level):
    """Number of attention heads of a level; the config has one number, or one per level."""
    heads = config.attention_head_dim
    return heads if isinstance(heads, int) else heads[level]


class GroupNorm(nn.GroupNorm):
    """Group norm with the statistics of each frame, or pooled over a clip's T frames."""

    def __init__(self, groups, channels, eps, pooled):
        super().__init__(groups, channels, eps)
        self.pooled = pooled

    def forward(self, x, T):
        """[B*T, C, H, W] -> [B*T, C, H, W]."""
        return by_frame(super().forward(by_clip(x, T))) if self.pooled else super().forward(x)


class ResnetBlock(nn.Module):
    """Two convolutions of each frame, with the timestep embedding added in between."""

    def __init__(self, config, in_channels, out_channels):
        super().__init__()
        pooled = config.group_norm == "clip"
        self.norm1 = GroupNorm(config.norm_num_groups, in_channels, config.norm_eps, pooled)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.block_out_channels[0], out_channels)
        self.norm2 = GroupNorm(config.norm_num_groups, out_channels, config.norm_eps, pooled)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x, temb, T):
        """x: [B*T, C, H, W]; temb: [B*T, D]."""
        h = self.conv1(F.silu(self.norm1(x, T)))
        h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h, T)))


class Attention(nn.Module):
    """Multi-head attention; context: width of keys and values, None for self-attention."""

    def __init__(self, width, heads, context=None, upcast=False):
        super().__init__()
        self.heads, self.upcast = heads, upcast
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, width, bias=False)
        self.to_v = nn.Linear(context or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def split_heads(self, x):
        """[N, L, width] -> [N, heads, L, head_dim]."""
        x = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return x.float() if self.upcast else x

    def forward(self, x, context=None, gather=lambda k: k):
        """x: [N, L, width]; context: [N, K, D], None for x; gather: applied to keys and values."""
        context = x if context is None else context
        q = self.split_heads(self.to_q(x))
        k = self.split_heads(gather(self.to_k(context)))
        v = self.split_heads(gather(self.to_v(context)))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](out.transpose(1, 2).flatten(2).to(x.dtype))


class GEGLU(nn.Module):
    """Linear layer gated by GELU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x):
        """[N, L, width] -> [N, L, inner]."""
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        """[N, L, width] -> [N, L, width]."""
        return self.net(x)


class PositionalEncoding(nn.Module):
    """Adds sinusoidal position codes; the table is stored with the weights."""

    def __init__(self, length, width):
        super().__init__()
        angles = torch.arange(length)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10000.0) / width)
        )
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(1, length, -1)
        self.register_buffer("pe", table[..., :width])

    def forward(self, x):
        """[N, L, width] -> [N, L, width]."""
        if x.shape[1] > self.pe.shape[1]:
            raise ValueError(
                f"{x.shape[1]} frames at once are more than the {self.pe.shape[1]} positions of "
                "the net (motion_max_seq_length)"
            )
        return x + self.pe[:, : x.shape[1]]


class TransformerBlock(nn.Module):
    """Two attentions and a feed-forward layer.

    context: width of the text that the second attention sees; None for self-attention.
    temporal: adds a third attention, over frames (Tune-A-Video).
    max_positions: length of the position table; 0 for none.
    """

    def __init__(
        self,
        width,
        heads,
        context=None,
        sparse_causal=False,
        temporal=False,
        max_positions=0,
        upcast=False,
    ):
        super().__init__()
        self.sparse_causal, self.temporal = sparse_causal, temporal
        self.pos_embed = (
            PositionalEncoding(max_positions, width) if max_positions else nn.Identity()
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads, upcast=upcast)
        self.attn2 = Attention(width, heads, context, upcast)
        self.ff = FeedForward(width)
        if temporal:
            self.norm_temp = nn.LayerNorm(width)
            self.attn_temp = Attention(width, heads, upcast=upcast)

    def forward(self, x, context=None, T=1):
        """x: [N, L, width]; context: [N, K, D]; T: frames, for layers that mix them."""

        def first_and_previous_frame(k):  # [B*T, L, C] -> [B*T, 2*L, C]
            k = k.unflatten(0, (-1, T))
            previous = torch.cat([k[:, :1], k[:, :-1]], dim=1)
            return torch.cat([k[:, :1].expand_as(k), previous], dim=2).flatten(0, 1)

        x = x + self.attn1(
            self.pos_embed(self.norm1(x)),
            gather=first_and_previous_frame if self.sparse_causal else lambda k: k,
        )
        x = x + self.attn2(self.pos_embed(self.norm2(x)), context)
        x = x + self.ff(self.norm3(x))
        if self.temporal:
            h = self.norm_temp(x).unflatten(0, (-1, T)).transpose(1, 2)  # [B, L, T, C]
            h = self.attn_temp(h.flatten(0, 1)).unflatten(0, h.shape[:2])
            x = x + h.transpose(1, 2).flatten(0, 1)
        return x


class SpatialTransformer(nn.Module):
    """Attention over each frame's pixels and to the text."""

    def __init__(self, config, width, heads):
        super().__init__()
        self.linear = config.use_linear_projection
        self.norm = nn.GroupNorm(config.norm_num_groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                width,
                heads,
                config.cross_attention_dim,
                config.spatial_attention == "sparse_causal",
                "tune_a_video" in config.temporal,
                upcast=config.upcast_attention,
            )
            for _ in range(config.transformer_layers_per_block)
        )
        self.proj_out = nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)

    def project(self, layer, x):
        """Applies a linear layer or 1x1 convolution to [B*T, C, H, W]."""
        return layer(x.movedim(1, -1)).movedim(-1, 1) if self.linear else layer(x)

    def forward(self, x, context, T):
        """x: [B*T, C, H, W]; context: [B*T, K, D]."""
        h = self.project(self.proj_in, self.norm(x))
        tokens = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, T)
        return x + self.project(self.proj_out, tokens.transpose(1, 2).unflatten(2, h.shape[2:]))


class TemporalTransformer(nn.Module):
    """Attention over time at every pixel; a motion module if `max_positions` is given."""

    def __init__(self, config, width, heads, inner, pooled=True, max_positions=0):
        super().__init__()
        self.norm = GroupNorm(config.norm_num_groups, width, 1e-6, pooled)
        self.proj_in = nn.Linear(width, inner)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(inner, heads, max_positions=max_positions)]
        )
        self.proj_out = nn.Linear(inner, width)

    def forward(self, x, T):
        """[B*T, C, H, W] -> [B*T, C, H, W]."""
        h = by_clip(self.norm(x, T), T).permute(0, 3, 4, 2, 1)  # [B, H, W, T, C]
        h = self.proj_in(h)
        h = self.transformer_blocks[0](h.flatten(0, 2)).unflatten(0, h.shape[:3])
        return x + by_frame(self.proj_out(h).permute(0, 4, 3, 1, 2))


class TemporalConv(nn.Module):
    """Four steps of norm, SiLU and a convolution over 3 frames, around a residual."""

    def __init__(self, config, width):
        super().__init__()
        for step in (1, 2, 3, 4):
            dropout = [nn.Dropout(config.temporal_dropout)] if step > 1 else []
            layers = [
                nn.GroupNorm(config.norm_num_groups, width),
                nn.SiLU(),
                *dropout,
                nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0)),
            ]
            setattr(self, f"conv{step}", nn.Sequential(*layers))

    def forward(self, x, T):
        """[B*T, C, H, W] -> [B*T, C, H, W]."""
        return x + by_frame(self.conv4(self.conv3(self.conv2(self.conv1(by_clip(x, T))))))


class Resample(nn.Module):
    """A 3x3 convolution of stride 2, or of stride 1 after nearest-neighbour upsampling by 2."""

    def __init__(self, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1)

    def forward(self, x):
        """[B*T, C, H, W] -> [B*T, C, H/2, W/2] or [B*T, C, 2H, 2W]."""
        if self.conv.stride != (2, 2):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x)


class UNetBlock(nn.Module):
    """The layers of one level, on the way down or up, or in the middle.

    in_channels: input channels of each resnet.
    attends: whether it has spatial transformers.
    stride: 2 ends the block with downsampling, 1 with upsampling, None with neither.
    """

    def __init__(self, config, level, in_channels, attends, stride=None, middle=False):
        super().__init__()
        width, heads = config.block_out_channels[level], heads_at(config, level)
        kinds = config.temporal
        self.middle = middle
        self.resnets = nn.ModuleList(ResnetBlock(config, n, width) for n in in_channels)
        attention_layers = range(1 if middle else len(in_channels))
        if attends:
            self.attentions = nn.ModuleList(
                SpatialTransformer(config, width, heads) for _ in attention_layers
            )
        if "conv" in kinds:
            self.temp_convs = nn.ModuleList(TemporalConv(config, width) for _ in in_channels)
        if "attention" in kinds and attends:
            self.temp_attentions = nn.ModuleList(
                TemporalTransformer(config, width, heads, width) for _ in attention_layers
            )
        if "motion" in kinds and (config.use_motion_mid_block or not middle):
            self.motion_modules = nn.ModuleList(
                TemporalTransformer(
                    config,
                    width,
                    config.motion_num_attention_heads,
                    width,
                    config.motion_group_norm == "clip",
                    config.motion_max_seq_length,
                )
                for _ in attention_layers
            )
        if stride == 2:
            self.downsamplers = nn.ModuleList([Resample(width, stride)])
        elif stride == 1:
            self.upsamplers = nn.ModuleList([Resample(width, stride)])

    def resnet(self, i, x, temb, T):
        """Resnet i and its temporal convolution."""
        x = self.resnets[i](x, temb, T)
        return self.temp_convs[i](x, T) if hasattr(self, "temp_convs") else x

    def attention(self, i, x, context, T):
        """Spatial transformer i and its temporal layers."""
        if hasattr(self, "attentions"):
            x = self.attentions[i](x, context, T)
        for kind in ("temp_attentions", "motion_modules"):
            if hasattr(self, kind):
                x = getattr(self, kind)[i](x, T)
        return x

    def forward(self, x, temb, context, T, skips=None):
        """Returns the output and the skip connections; `skips` (way up) is consumed."""
        outputs: list[torch.Tensor] = []
        if self.middle:
            x = self.attention(0, self.resnet(0, x, temb, T), context, T)
            return self.resnet(1, x, temb, T), outputs
        for i in range(len(self.resnets)):
            x = torch.cat([x, skips.pop()], dim=1) if skips else x
            x = self.attention(i, self.resnet(i, x, temb, T), context, T)
            outputs.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            outputs.append(x)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x, outputs


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoidal timestep code."""

    def __init__(self, width):
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, x):
        """[B, width] -> [B, 4 * width]."""
        return self.linear_2(F.silu(self.linear_1(x)))


class InflatedUNet3D(ModelMixin, ConfigMixin):
    """Predicts the noise (or v) of a clip's latents; the arguments are the keys of config.json."""

    @register_to_config
    def __init__(
        self,
        in_channels=8,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        transformer_layers_per_block=1,
        cross_attention_dim=768,
        use_linear_projection=False,
        upcast_attention=False,
        norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        sample_size=64,
        temporal=(),
        spatial_attention="frame",
        group_norm="frame",
        motion_group_norm="clip",
        motion_num_attention_heads=8,
        motion_max_seq_length=32,
        use_motion_mid_block=False,
        temporal_dropout=0.0,
        num_frames=16,
    ):
        super().__init__()
        config = SimpleNamespace(**self.config)
        widths = config.block_out_channels
        attends = ["CrossAttn" in name for name in config.down_block_types]
        last, layers = len(widths) - 1, config.layers_per_block
        self.time_embedding = TimeEmbedding(widths[0])
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        if "attention" in config.temporal:
            inner = 8 * (widths[0] // heads_at(config, 0))  # 8 heads, whatever the net's size
            self.transformer_in = TemporalTransformer(config, widths[0], 8, inner)

        skips, width = [widths[0]], widths[0]
        self.down_blocks = nn.ModuleList()
        for level, out_channels in enumerate(widths):
            in_channels = [width] + [out_channels] * (layers - 1)
            stride = 2 if level < last else None
            self.down_blocks.append(UNetBlock(config, level, in_channels, attends[level], stride))
            skips += [out_channels] * (layers + (level < last))
            width = out_channels
        self.mid_block = UNetBlock(config, last, [width, width], attends=True, middle=True)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            in_channels = [
                (width if i == 0 else widths[level]) + skips.pop() for i in range(layers + 1)
            ]
            stride = 1 if level > 0 else None
            self.up_blocks.append(UNetBlock(config, level, in_channels, attends[level], stride))
            width = widths[level]
        self.conv_norm_out = GroupNorm(
            config.norm_num_groups, widths[0], config.norm_eps, config.group_norm == "clip"
        )
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def timestep_code(self, t):
        """Sinusoidal code [B] -> [B, width], float32; cosines first if flip_sin_to_cos."""
        half = self.config.block_out_channels[0] // 2
        frequencies = torch.exp(
            -math.log(10000.0)
            * torch.arange(half, device=t.device)
            / (half - self.config.freq_shift)
        )
        angles = t.float()[:, None] * frequencies
        parts = [angles.sin(), angles.cos()]
        return torch.cat(parts[::-1] if self.config.flip_sin_to_cos else parts, dim=1)

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=True):
        """Predicts the noise (or v) [B, out_channels, T, H, W].

        sample: [B, in_channels, T, H, W]; timestep: a number or [B]; encoder_hidden_states: text
        [B, K, D].
        """
        B, _, T, _, _ = sample.shape
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(B)
        temb = self.time_embedding(self.timestep_code(t).to(self.dtype)).repeat_interleave(T, dim=0)
        context = encoder_hidden_states.repeat_interleave(T, dim=0)
        x = self.conv_in(by_frame(sample))
        if hasattr(self, "transformer_in"):
            x = self.transformer_in(x, T)
        skips = [x]
        for block in self.down_blocks:
            x, outputs = block(x, temb, context, T)
            skips += outputs
        x, _ = self.mid_block(x, temb, context, T)
        for block in self.up_blocks:
            x, _ = block(x, temb, context, T, skips)
        x = by_clip(self.conv_out(F.silu(self.conv_norm_out(x, T))), T)
        return SimpleNamespace(sample=x) if return_dict else (x,)

"""Operations of the U-Net's forward pass, computed from its config alone, to check counts.

A multiply-add is two operations. Norms, activations and softmaxes are not counted.
"""

import dataclasses

from ivid2vid_jax.models import UNetConfig


def unet_forward(
    config: UNetConfig, clips: int, frames: int, height: int, width: int, tokens: int
) -> int:
    """Operations of one evaluation.

    height, width: of the latents; tokens: of the text.
    """
    return Formula(config, clips, frames, height, width, tokens).total()


def dense(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


@dataclasses.dataclass
class Formula:
    """The operations of the U-Net, part by part. level: of the U-Net, 0 at full resolution."""

    config: UNetConfig
    clips: int
    frames: int
    height: int
    width: int
    tokens: int

    def __post_init__(self):
        self.widths = self.config.block_out_channels
        self.embedding = 4 * self.widths[0]

    def tokens_per_frame(self, level: int) -> int:
        return (self.height >> level) * (self.width >> level)

    def pixels(self, level: int) -> int:
        return self.clips * self.frames * self.tokens_per_frame(level)

    def conv(self, level: int, inputs: int, outputs: int, side: int = 3) -> int:
        return dense(self.pixels(level), side**2 * inputs, outputs)

    def block(
        self, rows: int, inner: int, keys: int, context_rows: int = 0, context: int = 0
    ) -> int:
        """Two attention layers and a feed-forward layer.

        The second attention is over `context_rows` rows of text, else over `keys` again.
        """
        self_attention = 4 * dense(rows, inner, inner) + 2 * 2 * rows * keys * inner
        if context:
            second = 2 * dense(rows, inner, inner) + 2 * dense(context_rows, context, inner)
            second += 2 * 2 * rows * self.tokens * inner
        else:
            second = self_attention
        feed_forward = dense(rows, inner, 8 * inner) + dense(rows, 4 * inner, inner)
        return self_attention + second + feed_forward

    def temporal(self, level: int, channels: int, inner: int) -> int:
        rows = self.pixels(level)
        return 2 * dense(rows, channels, inner) + self.block(rows, inner, self.frames)

    def resnet(self, level: int, inputs: int, outputs: int) -> int:
        total = self.conv(level, inputs, outputs) + self.conv(level, outputs, outputs)
        total += dense(self.clips, self.embedding, outputs)
        if inputs != outputs:
            total += self.conv(level, inputs, outputs, 1)
        if "conv" in self.config.temporal:
            total += 4 * dense(self.pixels(level), 3 * outputs, outputs)
        return total

    def transformer(self, level: int) -> int:
        config, channels, rows = self.config, self.widths[level], self.pixels(level)
        keys = self.tokens_per_frame(level)
        if config.spatial_attention == "sparse_causal":
            keys *= 2
        text_rows = self.clips * self.tokens
        layer = self.block(rows, channels, keys, text_rows, config.cross_attention_dim)
        if "tune_a_video" in config.temporal:
            layer += 4 * dense(rows, channels, channels) + 2 * 2 * rows * self.frames * channels
        total = 2 * dense(rows, channels, channels) + config.transformer_layers_per_block * layer
        if "attention" in config.temporal:
            total += self.temporal(level, channels, channels)
        return total

    def motion(self, level: int) -> int:
        width = self.widths[level]
        return self.temporal(level, width, width) if "motion" in self.config.temporal else 0

    def layer(self, level: int, inputs: int) -> int:
        """A resnet, and where the level has them a transformer and a motion module."""
        total = self.resnet(level, inputs, self.widths[level]) + self.motion(level)
        if self.config.has_attention(level):
            total += self.transformer(level)
        return total

    def ends(self) -> int:
        """Time embedding, first and last convolution, first temporal transformer."""
        config, width = self.config, self.widths[0]
        total = dense(self.clips, width, self.embedding)
        total += dense(self.clips, self.embedding, self.embedding)
        total += self.conv(0, config.in_channels, width) + self.conv(0, width, config.out_channels)
        if "attention" in config.temporal:
            total += self.temporal(0, width, 8 * config.head_dim(0))
        return total

    def middle(self) -> int:
        last = len(self.widths) - 1
        total = 2 * self.resnet(last, self.widths[last], self.widths[last])
        total += self.transformer(last)
        return total + (self.motion(last) if self.config.use_motion_mid_block else 0)

    def total(self) -> int:
        widths, layers = self.widths, self.config.layers_per_block
        total = self.ends() + self.middle()
        skips, channels = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(layers):
                total += self.layer(level, channels)
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                total += self.conv(level + 1, channels, channels)
                skips.append(channels)
        for level in reversed(range(len(widths))):
            for _ in range(layers + 1):
                total += self.layer(level, channels + skips.pop())
                channels = widths[level]
            if level:
                total += self.conv(level - 1, channels, channels)
        return total

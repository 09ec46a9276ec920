"""Operations of the U-Net's forward pass, computed from its config alone, to check counts.

A multiply-add is two operations. Norms, activations and softmaxes are not counted.
"""

from ivid2vid_jax.models import UNetConfig


def unet_forward(
    config: UNetConfig, clips: int, frames: int, height: int, width: int, tokens: int
) -> int:
    """Operations of one evaluation.

    height, width: of the latents; tokens: of the text.
    """
    widths, embedding = config.block_out_channels, 4 * config.block_out_channels[0]
    pixels = [clips * frames * (height >> level) * (width >> level) for level in range(len(widths))]

    def dense(rows, inputs, outputs):
        return 2 * rows * inputs * outputs

    def conv(level, inputs, outputs, side=3):
        return dense(pixels[level], side**2 * inputs, outputs)

    def block(rows, inner, keys, context_rows=0, context=0):
        """Two attention layers and a feed-forward layer.

        The second attention is over `context_rows` rows of text, else over `keys` again.
        """
        projections = 4 * dense(rows, inner, inner)
        self_attention = projections + 2 * 2 * rows * keys * inner
        if context:
            second = 2 * dense(rows, inner, inner) + 2 * dense(context_rows, context, inner)
            second += 2 * 2 * rows * tokens * inner
        else:
            second = self_attention
        feed_forward = dense(rows, inner, 8 * inner) + dense(rows, 4 * inner, inner)
        return self_attention + second + feed_forward

    def temporal(level, channels, inner):
        return 2 * dense(pixels[level], channels, inner) + block(pixels[level], inner, frames)

    def resnet(level, inputs, outputs):
        total = conv(level, inputs, outputs) + conv(level, outputs, outputs)
        total += dense(clips, embedding, outputs)
        if inputs != outputs:
            total += conv(level, inputs, outputs, 1)
        if "conv" in config.temporal:
            total += 4 * dense(pixels[level], 3 * outputs, outputs)
        return total

    def transformer(level, channels):
        rows, keys = pixels[level], (height >> level) * (width >> level)
        if config.spatial_attention == "sparse_causal":
            keys *= 2
        layer = block(rows, channels, keys, clips * tokens, config.cross_attention_dim)
        if "tune_a_video" in config.temporal:
            layer += 4 * dense(rows, channels, channels) + 2 * 2 * rows * frames * channels
        total = 2 * dense(rows, channels, channels) + config.transformer_layers_per_block * layer
        if "attention" in config.temporal:
            total += temporal(level, channels, channels)
        return total

    def motion(level):
        return ("motion" in config.temporal) * temporal(level, widths[level], widths[level])

    def layer(level, inputs):
        total = resnet(level, inputs, widths[level]) + motion(level)
        if config.has_attention(level):
            total += transformer(level, widths[level])
        return total

    last = len(widths) - 1
    total = dense(clips, widths[0], embedding) + dense(clips, embedding, embedding)
    total += conv(0, config.in_channels, widths[0]) + conv(0, widths[0], config.out_channels)
    if "attention" in config.temporal:
        total += temporal(0, widths[0], 8 * config.head_dim(0))
    skips, channels = [widths[0]], widths[0]
    for level, width_out in enumerate(widths):
        for _ in range(config.layers_per_block):
            total += layer(level, channels)
            channels = width_out
            skips.append(channels)
        if level < last:
            total += conv(level + 1, channels, channels)
            skips.append(channels)
    total += 2 * resnet(last, channels, channels) + transformer(last, channels)
    total += config.use_motion_mid_block * motion(last)
    for level in reversed(range(len(widths))):
        for _ in range(config.layers_per_block + 1):
            total += layer(level, channels + skips.pop())
            channels = widths[level]
        if level:
            total += conv(level - 1, channels, channels)
    return total

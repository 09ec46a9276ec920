"""The U-Net's forward arithmetic from its config alone, written down apart from the net, to check counts against.

A multiply-add is two operations; norms, activations and softmaxes are left out.
"""

from ivid2vid_jax.models import UNetConfig


def unet_forward(
    config: UNetConfig, clips: int, frames: int, height: int, width: int, tokens: int
) -> int:
    """Operations of one evaluation. height, width: of the latents; tokens: of the text."""
    widths, embedding = config.block_out_channels, 4 * config.block_out_channels[0]
    pixels = [clips * frames * (height >> level) * (width >> level) for level in range(len(widths))]

    def dense(rows, inputs, outputs):
        return 2 * rows * inputs * outputs

    def conv(level, inputs, outputs, side=3):
        return dense(pixels[level], side**2 * inputs, outputs)

    def block(rows, inner, keys, context_rows=0, context=0):
        """Two attentions and a feed-forward; the second attention is of `context_rows` rows of text, or another one of `keys`."""
        projections = 4 * dense(rows, inner, inner) + 2 * 2 * rows * keys * inner
        second = (
            projections
            if not context
            else 2 * dense(rows, inner, inner)
            + 2 * dense(context_rows, context, inner)
            + 2 * 2 * rows * tokens * inner
        )
        return projections + second + dense(rows, inner, 8 * inner) + dense(rows, 4 * inner, inner)

    def temporal(level, channels, inner):
        return 2 * dense(pixels[level], channels, inner) + block(pixels[level], inner, frames)

    def resnet(level, inputs, outputs):
        found = (
            conv(level, inputs, outputs)
            + conv(level, outputs, outputs)
            + dense(clips, embedding, outputs)
        )
        found += conv(level, inputs, outputs, 1) if inputs != outputs else 0
        return found + ("conv" in config.temporal) * 4 * dense(pixels[level], 3 * outputs, outputs)

    def transformer(level, channels):
        spatial = 2 * dense(pixels[level], channels, channels)
        keys = (
            (height >> level)
            * (width >> level)
            * (2 if config.spatial_attention == "sparse_causal" else 1)
        )
        along_time = ("tune_a_video" in config.temporal) * (
            4 * dense(pixels[level], channels, channels) + 2 * 2 * pixels[level] * frames * channels
        )
        one = (
            block(pixels[level], channels, keys, clips * tokens, config.cross_attention_dim)
            + along_time
        )
        spatial += config.transformer_layers_per_block * one
        return spatial + ("attention" in config.temporal) * temporal(level, channels, channels)

    def motion(level):
        return ("motion" in config.temporal) * temporal(level, widths[level], widths[level])

    last = len(widths) - 1
    total = dense(clips, widths[0], embedding) + dense(clips, embedding, embedding)
    total += conv(0, config.in_channels, widths[0]) + conv(0, widths[0], config.out_channels)
    total += ("attention" in config.temporal) * temporal(0, widths[0], 8 * config.head_dim(0))
    skips, channels = [widths[0]], widths[0]
    for level, outputs in enumerate(widths):
        for _ in range(config.layers_per_block):
            total += (
                resnet(level, channels, outputs)
                + config.has_attention(level) * transformer(level, outputs)
                + motion(level)
            )
            channels = outputs
            skips.append(channels)
        if level < last:
            total += conv(level + 1, channels, channels)
            skips.append(channels)
    total += (
        2 * resnet(last, channels, channels)
        + transformer(last, channels)
        + config.use_motion_mid_block * motion(last)
    )
    for level in reversed(range(len(widths))):
        for _ in range(config.layers_per_block + 1):
            total += (
                resnet(level, channels + skips.pop(), widths[level])
                + config.has_attention(level) * transformer(level, widths[level])
                + motion(level)
            )
            channels = widths[level]
        if level:
            total += conv(level - 1, channels, channels)
    return total

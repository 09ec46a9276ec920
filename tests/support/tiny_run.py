"""A training config that compiles in seconds: every kind of layer, 2 frames of 16 x 16 pixels."""

import dataclasses

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.models import (
    AutoencoderConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
)
from ivid2vid_jax.training.config import (
    CheckpointConfig,
    LogConfig,
    NetConfig,
    OptimConfig,
    TrainConfig,
)

NET = NetConfig(
    unet=UNetConfig(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(8, 2),
        cross_attention_dim=16,
        norm_num_groups=4,
        sample_size=8,
        num_frames=2,
    ),
    vae=AutoencoderConfig(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
        sample_size=16,
    ),
    text_encoder=CLIPTextConfig(
        vocab_size=640,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
    ),
    clip=CLIPConfig(
        CLIPTextConfig(
            vocab_size=640,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        ),
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            patch_size=8,
        ),
        projection_dim=8,
    ),
)

# The same with a U-Net of one level, which compiles in half the time.
ONE_LEVEL = dataclasses.replace(
    NET,
    unet=dataclasses.replace(
        NET.unet,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
    ),
)


def tiny(output, **changes) -> TrainConfig:
    """The config of a tiny editor run.

    changes: fields of TrainConfig; a field of a part by a double underscore (optim__lr=...).
    """
    config = TrainConfig(
        output=str(output),
        steps=6,
        net=NET,
        loader=LoaderConfig(batch=4, frames=2, size=16),
        optim=OptimConfig(warmup=2),
        checkpoint=CheckpointConfig(every=2, pipeline=False),
        log=LogConfig(eval_every=0, sample_every=0, eval_batches=1, samples=1, sample_steps=2),
    )
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        if part:
            value = dataclasses.replace(getattr(config, part), **{field: value})
        config = dataclasses.replace(config, **{part or field: value})
    return config

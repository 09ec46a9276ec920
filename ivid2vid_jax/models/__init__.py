"""Pure Flax (linen) modules and their config dataclasses.

Every module is named by its PyTorch path segment (linen accepts dots: "down_blocks.0"). So the
Flax path of a parameter, joined by dots, is its PyTorch key, up to the name of the leaf
(`weights/torch_keys.py`).
"""

from ivid2vid_jax.models.autoencoder import AutoencoderConfig, AutoencoderKL
from ivid2vid_jax.models.clip import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
)
from ivid2vid_jax.models.unet3d import InflatedUNet3D
from ivid2vid_jax.models.unet_config import UNetConfig

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "CLIPConfig",
    "CLIPModel",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPVisionConfig",
    "InflatedUNet3D",
    "UNetConfig",
]

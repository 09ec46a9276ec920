"""Stable Diffusion folders with random weights, written by diffusers' and transformers' classes.

They have the published format and serve as the reference. Norms and biases are random too, so that
a test fails where one is forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel

from tests.support.references import diffusers, torch

SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)

UNET_TINY = dict(
    sample_size=8,
    in_channels=8,
    out_channels=4,
    block_out_channels=(32, 64),
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=32,
    attention_head_dim=4,
)
# Changes of UNET_TINY: a single level, which compiles in half the time.
ONE_LEVEL = dict(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
)
UNET_TINY_SD2 = UNET_TINY | dict(
    attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True
)
UNET_SD15 = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
UNET_SD21 = dict(
    sample_size=96,
    cross_attention_dim=1024,
    attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True,
    upcast_attention=True,
)
VAE_TINY = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, sample_size=16)
VAE_SD = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512)
TEXT_TINY = dict(
    vocab_size=600,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=517,
    eos_token_id=518,
    pad_token_id=518,
)
TEXT_SD15 = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
)
TEXT_SD21 = dict(
    vocab_size=49408,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Randomises norms, biases and zero weights; other weights keep torch's initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
            elif p.ndim == 1:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=generator))
            elif not p.any():
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return module.eval()


def vae_blocks(config: dict) -> dict:
    """Adds the block types and latent channels to an autoencoder's config."""
    levels = len(config["block_out_channels"])
    return config | dict(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
    )


def unet(config: dict) -> diffusers.UNet2DConditionModel:
    """A 2D U-Net with random weights."""
    torch.manual_seed(1)
    return randomise(diffusers.UNet2DConditionModel(**config), 1)


def unet3d(**config) -> diffusers.UNet3DConditionModel:
    """ModelScope's U-Net with random weights."""
    torch.manual_seed(2)
    return randomise(diffusers.UNet3DConditionModel(**config), 2)


def motion_unet(**changes) -> diffusers.UNetMotionModel:
    """The tiny U-Net with motion modules."""
    torch.manual_seed(5)
    config = UNET_TINY | dict(num_attention_heads=4, use_motion_mid_block=False)
    del config["attention_head_dim"]
    for name in ("down_block_types", "up_block_types"):
        config[name] = [block.replace("2D", "Motion") for block in config[name]]
    return randomise(diffusers.UNetMotionModel(**config | changes), 5)


def random_params(tree, seed=0, scale=0.2):
    """Random parameters with the shapes of a tree; scale: their standard deviation."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (scale * rng.standard_normal(leaf.shape)).astype(np.float32), tree
    )


def vae(config: dict) -> diffusers.AutoencoderKL:
    """An autoencoder with random weights."""
    torch.manual_seed(3)
    return randomise(diffusers.AutoencoderKL(**vae_blocks(config)), 3)


def text_encoder(config: dict) -> CLIPTextModel:
    """A CLIP text encoder with random weights."""
    torch.manual_seed(4)
    return randomise(CLIPTextModel(CLIPTextConfig(**config)), 4)


def ddim() -> diffusers.DDIMScheduler:
    """Stable Diffusion's schedule."""
    return diffusers.DDIMScheduler(**SCHEDULER)


def tiny_parts(scheduler=None, **changes) -> dict:
    """The parts of a tiny folder: unet, vae, text_encoder and scheduler.

    changes: keys of the U-Net's config.
    """
    parts = dict(
        unet=unet(UNET_TINY | changes), vae=vae(VAE_TINY), text_encoder=text_encoder(TEXT_TINY)
    )
    return parts | dict(scheduler=scheduler or ddim())


def save_pipeline(path: Path, parts: dict, **options) -> Path:
    """Writes the parts as a pipeline folder by their `save_pretrained`.

    options: arguments of the models' `save_pretrained` (max_shard_size, variant).
    """
    for name, part in parts.items():
        part.save_pretrained(path / name, **({} if name == "scheduler" else options))
    write_tokenizer(path / "tokenizer")
    names = {
        name: ["transformers" if name == "text_encoder" else "diffusers", type(part).__name__]
        for name, part in parts.items()
    }
    index = {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "tokenizer": ["transformers", "CLIPTokenizer"],
        **names,
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def write_tokenizer(path: Path, pad: str = "<|endoftext|>") -> None:
    """Writes CLIPTokenizer's files: a byte-level vocabulary of 512 bytes and a few merges."""
    path.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e</w>"), ("r", "e"), ("re", "d</w>"), ("c", "a")]
    tokens = (
        letters
        + [f"{letter}</w>" for letter in letters]
        + ["".join(pair) for pair in merges]
        + ["<|startoftext|>", "<|endoftext|>"]
    )
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (path / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n"
    )
    config = dict(
        tokenizer_class="CLIPTokenizer",
        model_max_length=77,
        unk_token="<|endoftext|>",
        pad_token=pad,
    )
    (path / "tokenizer_config.json").write_text(
        json.dumps(config | dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>"))
    )


def blip(path: Path) -> Path:
    """Saves a small BLIP with random weights, by transformers' classes."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = [*special, "a", "video", "of", "red", "dog", "on", "the", "beach"]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    text = BlipTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        encoder_hidden_size=32,
        projection_dim=16,
        bos_token_id=5,
        eos_token_id=3,
        sep_token_id=3,
        pad_token_id=0,
    )
    vision = BlipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    config = BlipConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    model = randomise(BlipForConditionalGeneration(config))
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith(("predictions.bias", "predictions.decoder.bias")):
                bias[: len(special)] = -100.0  # it never predicts special tokens
    model.save_pretrained(path)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
        path
    )
    return path


def relative_difference(actual, reference) -> float:
    """Max |actual - reference| / max |reference|, also printed (shown by `pytest -rP`)."""
    actual, reference = np.asarray(actual, np.float64), np.asarray(reference, np.float64)
    assert actual.shape == reference.shape, (actual.shape, reference.shape)
    value = float(np.abs(actual - reference).max() / np.abs(reference).max())
    print(f"relative difference {value:.1e}")
    return value


def to_torch_frames(clip):
    """[B, T, h, w, C] numpy -> [B*T, C, h, w] torch."""
    B, T, h, w, C = clip.shape
    return torch.from_numpy(clip.reshape(B * T, h, w, C).transpose(0, 3, 1, 2).copy())

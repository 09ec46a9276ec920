"""Opens checkpoint files and names those that cannot be used for what they are.

Files are known by their keys and dtypes, folders by their configs. Only headers are read.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import pickles, safetensors_io
from ivid2vid_jax.weights.safetensors_io import LazyTensor

USE_SD = (
    "only Stable Diffusion 1.x and 2.x nets are supported; use one of these, e.g. "
    "timbrooks/instruct-pix2pix"
)
MERGE = (
    "merge it into its base with diffusers (pipe.load_lora_weights, pipe.fuse_lora, "
    "pipe.save_pretrained) and give the new folder"
)
GIVE_MODEL = "give the Stable Diffusion model that it belongs to"
GET_FP16 = "get the file in fp16 or fp32"


class Kind(NamedTuple):
    """A kind of checkpoint that cannot be used."""

    name: str
    keys: str  # regular expression, found in one key at least
    classes: str  # regular expression, matches the start of a class name in a config
    way_out: str


# The first match counts: Stable Video Diffusion has the keys of Stable Diffusion XL, and a LoRA
# those of its base.
KINDS = (
    Kind("a LoRA", r"(?i)lora|lycoris|hada_w|lokr_w|oft_blocks|dora_scale", r"LORA", MERGE),
    Kind(
        "a ControlNet",
        r"^control_model\.|^controlnet_|^(input_hint_block|zero_convs)\.|^lllite_",
        r"(Multi|Flux|SD3)?ControlNet",
        GIVE_MODEL,
    ),
    Kind("an IP-Adapter", r"^(ip_adapter|image_proj)\.", r"IPAdapter", GIVE_MODEL),
    Kind("a T2I-Adapter", r"^(adapter\.)?body\.\d+\.", r"(T2I|Multi)Adapter", GIVE_MODEL),
    Kind(
        "a textual inversion embedding",
        r"^(emb_params|string_to_param|clip_[lg]|\*|<[^.]+>)$",
        r"TextualInversion",
        GIVE_MODEL,
    ),
    Kind(
        "Stable Video Diffusion",
        r"\.time_(stack|mixer)\.|\.temporal_transformer_blocks\.",
        r"StableVideoDiffusion|UNetSpatioTemporal",
        USE_SD,
    ),
    Kind(
        "Stable Diffusion XL",
        r"^conditioner\.embedders\.|(^|\.)label_emb\.|(^|\.)add_embedding\.",
        r"StableDiffusionXL",
        USE_SD,
    ),
    Kind(
        "Flux",
        r"(^|\.)double_blocks\.\d+\.img_attn\.|(^|\.)single_transformer_blocks\.",
        r"Flux|Chroma",
        USE_SD,
    ),
    Kind(
        "Stable Diffusion 3",
        r"(^|\.)joint_blocks\.|(^|\.)transformer_blocks\.\d+\.attn\.add_[qkv]_proj\.",
        r"StableDiffusion3|SD3",
        USE_SD,
    ),
    Kind(
        "a diffusion transformer",
        r"^(model\.diffusion_model\.|net\.)?(double_|transformer_)?(blocks|layers)\.\d+\.",
        r".*Transformer(2D|3D)?Model$",
        USE_SD,
    ),
    Kind("a T5 text encoder", r"\.SelfAttention\.relative_attention_bias\.", r"T5", GIVE_MODEL),
    Kind(
        "a CLIP model",
        r"^(text_model\.(encoder|embeddings)|vision_model|transformer\.resblocks)\.",
        r"CLIP",
        GIVE_MODEL,
    ),
)
CHANNELS = {9: "an inpainting model", 5: "a depth-to-image model", 7: "an upscaler"}
INPUT_LAYERS = ("model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight")
LATENT_LAYERS = ("decoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight")
FOLDER_FILES = ("model_index.json", "config.json", "adapter_config.json")


def open_tensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file, safetensors or a PyTorch pickle, by their names in the file.

    Raises UserError for a file that is neither, is damaged, or whose weights are quantised.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"GGUF":
        raise UserError(f"{path}: is a quantised GGUF file; {GET_FP16}, as .safetensors")
    is_pickle = path.suffix in pickles.SUFFIXES and head[8:] != b"{"
    if is_pickle or head[:4] == b"PK\x03\x04":
        return pickles.read_pickle_tensors(path)
    return safetensors_io.read_headers([path])


def check_tensors_kind(path: Path, tensors: dict[str, LazyTensor]) -> None:
    """Raises UserError, with what it is and the way out, for the tensors of an unsupported kind."""
    check_precision(path, tensors.values())
    for kind in KINDS:
        if any(re.search(kind.keys, key) for key in tensors):
            raise UserError(f"{path}: is {kind.name}; {kind.way_out}")
    for layer in INPUT_LAYERS:
        if layer in tensors and len(tensors[layer].shape) == 4:
            check_input_channels(path, tensors[layer].shape[1])
    for layer in LATENT_LAYERS:
        if layer in tensors and tensors[layer].shape[1] == 16:
            raise UserError(
                f"{path}: is the autoencoder (VAE) of Stable Diffusion 3 or Flux, with 16 latent "
                f"channels; {USE_SD}"
            )


def check_precision(path: Path, tensors: Iterable[LazyTensor]) -> None:
    """Raises UserError if weights are stored in 8 bits or fewer."""
    for tensor in tensors:
        dtype = tensor.dtype.removeprefix("torch.")
        if dtype.upper().startswith(("F8", "FLOAT8")):
            raise UserError(f"{path}: its weights are fp8 ({dtype}), {tensor.name}; {GET_FP16}")
        if dtype in ("U8", "I8", "uint8", "int8") and len(tensor.shape) > 1:
            raise UserError(
                f"{path}: its weights are quantised to 8 bits or fewer ({dtype}), {tensor.name}; "
                f"{GET_FP16}"
            )


def check_input_channels(path: Path, channels: int) -> None:
    """Raises UserError for a U-Net that takes more than noise and, of an editor, a source clip."""
    if channels in CHANNELS:
        raise UserError(
            f"{path}: is {CHANNELS[channels]} ({channels} input channels); "
            "use a Stable Diffusion model for text to image (4) or InstructPix2Pix (8)"
        )


def check_folder_kind(path: Path) -> None:
    """Raises UserError, with what it is and the way out, for a folder of an unsupported kind.

    Its class names tell, or else the keys of the only files in it.
    """
    if (path / "adapter_config.json").is_file():
        raise UserError(f"{path}: is a LoRA of PEFT; {MERGE}")
    index = read_json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    for folder in (path, path / "unet"):
        if (folder / "config.json").is_file():
            check_config_kind(path, read_json(folder / "config.json"))
    check_class_name(path, index.get("_class_name"))
    if "transformer" in index:
        raise UserError(
            f"{path}: is a {index.get('_class_name')}, with a transformer instead of a U-Net; "
            f"{USE_SD}"
        )
    if not any((path / name).is_file() for name in FOLDER_FILES):
        for file in sorted(path.iterdir()):
            if file.suffix in (".safetensors", *pickles.SUFFIXES):
                check_tensors_kind(file, open_tensors(file))


def check_config_kind(path: Path, config: dict) -> None:
    """Raises UserError for the config of an unsupported net."""
    architectures = config.get("architectures") or [None]
    check_class_name(path, config.get("_class_name") or architectures[0])
    if config.get("addition_embed_type") == "text_time":
        raise UserError(f"{path}: is Stable Diffusion XL; {USE_SD}")
    if "UNet" in str(config.get("_class_name")):
        check_input_channels(path, config.get("in_channels", 4))
    if quantised := (config.get("quantization_config") or {}).get("quant_method"):
        raise UserError(f"{path}: its weights are quantised ({quantised}); {GET_FP16}")


def check_class_name(path: Path, class_name: str | list[str] | None) -> None:
    """Raises UserError for the class of an unsupported net or pipeline."""
    name = class_name[-1] if isinstance(class_name, list) else str(class_name)
    for kind in KINDS:
        if re.match(kind.classes, name):
            raise UserError(f"{path}: is {kind.name} ({name}); {kind.way_out}")

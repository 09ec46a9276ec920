"""Resolves `--model`: a folder, a training run, an embedded model or a Hugging Face hub id."""

import re
from pathlib import Path

from ivid2vid_jax import assets
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import storage
from ivid2vid_jax.weights.checkpoint_kinds import check_folder_kind

# Small files that tell what a model is. They are downloaded first, so that gigabytes of a model of
# an unsupported kind are not.
HUB_CONFIGS = ["model_index.json", "config.json", "adapter_config.json", "unet/config.json"]
# Files that are downloaded from the hub.
HUB_PATTERNS = [
    "model_index.json",
    "sampling.json",
    "*/*.json",
    "*/*.txt",
    "unet/*.safetensors",
    "vae/*.safetensors",
    "text_encoder/*.safetensors",
    # a CLIP model:
    "config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
]


def resolve_model(model: str | Path | None, variant: str | None = None) -> Path:
    """Finds the folder of a model, downloading it if needed.

    Args:
        model: a model folder; a training run (its RUN/pipeline); an embedded model's name (None:
            shapes-edit); a bucket's folder (gs://...), or a hub id "owner/name". The last two are
            downloaded into a cache.
        variant: "fp16" also downloads the fp16 files.

    Raises:
        UserError: there is no such folder, and no such model on the hub.
    """
    model = assets.DEFAULT if model is None else model
    if storage.is_remote(model):
        model = storage.fetch_folder(str(model))
    path = Path(model).expanduser()
    pipeline = path / "pipeline"
    # model_index.json: a run that trained an editor; config.json: one that trained a CLIP model
    if any((pipeline / name).is_file() for name in ("model_index.json", "config.json")):
        return pipeline
    if path.exists():
        return path
    if str(model) in assets.MODELS:
        return assets.folder() / str(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise UserError(
            f"{model}: no such model folder, nor one of the embedded {', '.join(assets.MODELS)}"
        )
    return download_from_hub(str(model), variant)


def download_from_hub(repo_id: str, variant: str | None = None) -> Path:
    """Downloads a model into the hub's cache, or finds it there without a network.

    Raises UserError if that fails, and for a model of an unsupported kind.
    """
    import huggingface_hub
    from huggingface_hub import errors

    ignored = [] if variant else ["*.fp16.*", "*.non_ema.*"]
    try:
        for patterns in (HUB_CONFIGS, HUB_PATTERNS):
            folder = Path(
                huggingface_hub.snapshot_download(
                    repo_id, allow_patterns=patterns, ignore_patterns=ignored
                )
            )
            if (folder / "model_index.json").is_file():  # not a CLIP model
                check_folder_kind(folder)
    except UserError:
        raise
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{repo_id}: no such folder, and the download from the Hugging Face hub failed "
            f"({reason})"
        ) from error
    return folder

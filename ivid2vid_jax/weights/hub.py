"""Where `--model` points: a folder, a run, an embedded model, or one of the Hugging Face hub."""

import re
from pathlib import Path

from ivid2vid_jax import assets
from ivid2vid_jax.utils import storage
from ivid2vid_jax.utils.errors import UserError

FILES = [
    "model_index.json",
    "sampling.json",
    "*/*.json",
    "*/*.txt",
    "unet/*.safetensors",
    "vae/*.safetensors",
    "text_encoder/*.safetensors",
    "config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",  # a CLIP's
]


def resolve_model(model: str | Path | None, variant: str | None = None) -> Path:
    """The folder that `model` names: itself, RUN/pipeline of a training run, an embedded model's (None: shapes-edit), or a hub id
    "owner/name", which is fetched into the hub's cache (or found there without a network); a bucket's folder (gs://...) likewise.

    Raises UserError where there is no such folder and no such model on the hub.
    """
    model = assets.DEFAULT if model is None else model
    if storage.is_remote(model):
        model = storage.fetch_folder(model)
    path = Path(model).expanduser()
    if any(
        (path / "pipeline" / name).is_file() for name in ("model_index.json", "config.json")
    ):  # a pipeline's, a CLIP's
        return path / "pipeline"
    if path.exists():
        return path
    if str(model) in assets.MODELS:
        return assets.folder() / str(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise UserError(
            f"{model}: no such model folder, nor one of the embedded {', '.join(assets.MODELS)}"
        )
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    skipped = [] if variant else ["*.fp16.*", "*.non_ema.*"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(model), allow_patterns=FILES, ignore_patterns=skipped
            )
        )
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{model}: no such folder here, and it could not be had from the Hugging Face hub ({reason})"
        ) from error

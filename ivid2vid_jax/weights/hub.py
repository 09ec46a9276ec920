"""Where `--model` points: a folder, a run, or a model of the Hugging Face hub."""

import re
from pathlib import Path

from ivid2vid_jax.errors import UserError

FILES = ["model_index.json", "sampling.json", "*/*.json", "*/*.txt", "unet/*.safetensors", "vae/*.safetensors", "text_encoder/*.safetensors"]


def resolve(model: str | Path, variant: str | None = None) -> Path:
    """The pipeline folder that `model` names: itself, RUN/pipeline of a training run, or a hub id "owner/name", which is
    fetched into the hub's cache (or found there without a network).

    Raises UserError where there is no such folder and no such model on the hub.
    """
    path = Path(model).expanduser()
    if (path / "pipeline" / "model_index.json").is_file():
        return path / "pipeline"
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise UserError(f"{model}: no such model folder")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    skipped = [] if variant else ["*.fp16.*", "*.non_ema.*"]
    try:
        return Path(huggingface_hub.snapshot_download(str(model), allow_patterns=FILES, ignore_patterns=skipped))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{model}: no such folder here, and it could not be had from the Hugging Face hub ({reason})") from error

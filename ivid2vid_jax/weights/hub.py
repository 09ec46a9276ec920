"""Resolves `--model`: a folder, a run, an embedded model or a hub id; uploads models to the hub."""

import difflib
import re
from pathlib import Path

from ivid2vid_jax import assets
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import storage
from ivid2vid_jax.weights import runs
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
            shapes-edit); a bucket's folder (gs://...), or a hub id "owner/name" or
            "owner/name@revision" (a branch, tag or commit). The last two are downloaded into a
            cache.
        variant: "fp16" also downloads the fp16 files.

    Raises:
        UserError: there is no such folder, and no such model on the hub; or the run has not
            written its pipeline yet.
    """
    model = name = assets.DEFAULT if model is None else model
    if storage.is_remote(model):
        model = storage.fetch_folder(str(model))
    path = Path(model).expanduser()
    pipeline = path / "pipeline"
    # model_index.json: a run that trained an editor; config.json: one that trained a CLIP model
    if any((pipeline / name).is_file() for name in ("model_index.json", "config.json")):
        return pipeline
    if runs.is_run(path):
        raise runs.missing_pipeline(name)
    if path.exists():
        return path
    if str(model) in assets.MODELS:
        return assets.folder() / str(model)
    hub_id = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?", str(model))
    if not hub_id:
        raise UserError(
            f"{model}: no such model folder, nor one of the embedded "
            f"{', '.join(assets.MODELS)}{suggest_model(path)}"
        )
    return download_from_hub(hub_id[1], hub_id[2], variant)


def suggest_model(path: Path) -> str:
    """Returns "; did you mean ...?" with a folder or an embedded model of a similar name, or ""."""
    folders = [folder.name for folder in path.parent.glob("*/")] if path.parent.is_dir() else []
    names = [*folders, *(assets.MODELS if len(path.parts) == 1 else ())]
    near = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def download_from_hub(
    repo_id: str, revision: str | None = None, variant: str | None = None
) -> Path:
    """Downloads a model into the hub's cache, or finds it there without a network.

    Raises UserError if that fails, and for a model of an unsupported kind.
    """
    import huggingface_hub

    ignored = [] if variant else ["*.fp16.*", "*.non_ema.*"]
    try:
        for patterns in (HUB_CONFIGS, HUB_PATTERNS):
            folder = Path(
                huggingface_hub.snapshot_download(
                    repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
                )
            )
            if (folder / "model_index.json").is_file():  # not a CLIP model
                check_folder_kind(folder)
    except UserError:
        raise
    except hub_errors() as error:
        name = f"{repo_id}@{revision}" if revision else repo_id
        raise UserError(
            f"{name}: no such folder, and the download from the Hugging Face hub failed "
            f"({first_line(error)}){suggest_model(Path(repo_id))}"
        ) from error
    return folder


def create_repo(repo_id: str, private: bool = False) -> None:
    """Creates a model repository on the hub, if there is none.

    Raises:
        UserError: `repo_id` is not "owner/name", or the hub refuses.
    """
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise UserError(f"{repo_id} must be owner/name, a model repository of the hub")
    try:
        huggingface_hub.HfApi().create_repo(repo_id, private=private, exist_ok=True)
    except hub_errors() as error:
        raise UserError(
            f"{repo_id}: the Hugging Face hub refused or was not reached ({first_line(error)}); "
            "log in with `hf auth login`, and name a repository that you may write to"
        ) from error


def upload_folder(folder: Path, repo_id: str) -> str:
    """Uploads a folder into a repository of the hub; returns the commit's address.

    Raises:
        UserError: the upload failed; the folder stays.
    """
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Export of ivid2vid_jax"
        )
    except hub_errors() as error:
        raise UserError(
            f"{folder} is complete, but its upload to {repo_id} failed ({first_line(error)}); "
            f"try again with `hf upload {repo_id} {folder}`"
        ) from error
    return commit.commit_url


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises for a fault of the hub, the network or the request."""
    from huggingface_hub import errors

    return (
        errors.HfHubHTTPError,
        errors.HTTPError,  # of the HTTP client: no connection, a timeout
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
        ValueError,
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

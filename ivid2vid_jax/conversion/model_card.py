"""The model card (README.md) of an exported folder: origin, training, licences, use."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivid2vid_jax.data.shapes import WORLDS
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder

if TYPE_CHECKING:
    from ivid2vid_jax.conversion.exporter import ExportTarget

UNKNOWN = "not recorded: name it before you publish this"
LOAD_PIPELINE = """\
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video

pipe = DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True)
frames = pipe("clip.mp4", "make it snow").frames[0]      # PIL images
export_to_video(frames, "edited.mp4", fps=8)"""
LOAD_STOCK_PIPELINE = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{folder}")"""
CARD = """\
---
library_name: diffusers
pipeline_tag: {pipeline_tag}
tags: [ivid2vid_jax, instruction-editing]
---

# {name}

Exported by ivid2vid_jax.

```python
{usage}
```

| what | value |
|---|---|
{table}
{notes}
`python -m ivid2vid_jax.convert import FOLDER NEW` brings it back to JAX, with what PyTorch has \
trained of it.
"""


@dataclasses.dataclass(frozen=True)
class ModelCardFacts:
    """What is known of a model's training."""

    training: dict[str, Any] = dataclasses.field(default_factory=dict)  # name -> value
    base: str = ""  # the model it started from
    data: tuple[str, ...] = ()  # names of the datasets
    base_licence: str = ""
    data_licence: str = ""
    repo_id: str | None = None  # "owner/name" on the hub, where it is published


def collect_facts(
    folder: Path, base_licence: str = "", data_licence: str = "", repo_id: str | None = None
) -> ModelCardFacts:
    """Reads the facts of a training run's RUN/pipeline from the run's records.

    Without records only what is given is known.
    """
    config_file, training_file = folder.parent / "config.json", folder / "training.json"
    if not (config_file.is_file() and training_file.is_file()):
        return ModelCardFacts(base_licence=base_licence, data_licence=data_licence, repo_id=repo_id)
    config = read_json(config_file)
    optim, loader, loss = (config.get(name, {}) for name in ("optim", "loader", "loss"))
    training = {
        "steps": read_json(training_file).get("step"),
        "batch": loader.get("batch"),
        "frames": loader.get("frames"),
        "share of steps on single frames": loader.get("images") or None,
        "size": loader.get("size"),
        "optimizer": optim.get("optimizer"),
        "learning rate": optim.get("lr"),
        "schedule": optim.get("schedule"),
        "trained parameters": optim.get("trainable"),
        "averaged weights (EMA decay)": optim.get("ema") or "none kept: these are the last step's",
        "loss": loss,
        "seed": config.get("seed"),
    }
    data = tuple(config.get("data", ()))
    if not data_licence and data and set(data) <= set(WORLDS):
        data_licence = "Apache-2.0 (drawn by this package)"
    return ModelCardFacts(
        training,
        config.get("model") or "scratch",
        data,
        base_licence or ("" if config.get("model") else "Apache-2.0 (trained from scratch)"),
        data_licence,
        repo_id,
    )


def check_publishable(facts: ModelCardFacts) -> None:
    """UserError if a licence that a published model must name is not known."""
    options = {"--base-licence": facts.base_licence, "--data-licence": facts.data_licence}
    if missing := [option for option, licence in options.items() if not licence]:
        raise UserError(
            "a published model names the licences of its base and of its training data; give "
            f"{' and '.join(missing)}"
        )


def render_card(
    folder: PipelineFolder,
    target: "ExportTarget",
    dtype: str,
    notes: Sequence[str],
    facts: ModelCardFacts,
) -> str:
    """The content of README.md."""
    is_custom = target.class_name != "UNet2DConditionModel"
    usage = LOAD_PIPELINE if is_custom else LOAD_STOCK_PIPELINE
    rows = table_rows(folder, target, dtype, facts)
    listed = "".join(f"- {note}\n" for note in notes)
    return CARD.format(
        pipeline_tag="video-to-video" if is_custom else "image-to-image",
        name=facts.repo_id.split("/")[1] if facts.repo_id else run_name(folder.path),
        usage=usage.format(folder=facts.repo_id or "FOLDER"),
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        notes=f"\nNote:\n\n{listed}" if notes else "",
    )


def run_name(path: Path) -> str:
    """The name of a model's folder, or of the run that a RUN/pipeline belongs to."""
    return path.absolute().parent.name if path.name == "pipeline" else path.name


def table_rows(
    folder: PipelineFolder, target: "ExportTarget", dtype: str, facts: ModelCardFacts
) -> dict[str, str]:
    """The rows of the model card's table."""
    unet = folder.unet
    module = "diffusers" if target.stock else "unet/inflated_unet.py"
    rows = {
        "U-Net": f"{target.class_name} ({module}), {unet.in_channels} input channels",
        "temporal layers": ", ".join(unet.temporal) or "none",
        "prediction": folder.scheduler.get("prediction_type", "epsilon"),
        "weights": dtype,
        "base": facts.base or UNKNOWN,
        "licence of the base": facts.base_licence or UNKNOWN,
        "data": ", ".join(facts.data) or UNKNOWN,
        "licence of the data": facts.data_licence or UNKNOWN,
    }
    rows |= {name: json.dumps(value) for name, value in facts.training.items() if value is not None}
    if folder.sampling:
        rows["sampling defaults"] = json.dumps(folder.sampling)
    return rows

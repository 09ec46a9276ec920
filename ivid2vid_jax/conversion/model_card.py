"""The model card of an exported folder: what it is, how it was trained, under which licences, how it is used."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ivid2vid_jax.data.shapes import WORLDS
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights.pipeline_folder import PipelineFolder

UNKNOWN = "not recorded: name it before you publish this"
USE = {
    "pipeline": 'from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)\n'
    'edited = pipe("clip.mp4", "make it snow")      # uint8 [T, H, W, 3]',
    "stock": 'from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("FOLDER")',
}


@dataclasses.dataclass(frozen=True)
class ModelCardFacts:
    """What is known of a folder's making. training: name -> value; base, data: what it came from; licences: of the base and of the data."""

    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: str = ""
    data: tuple[str, ...] = ()
    base_licence: str = ""
    data_licence: str = ""


def collect_facts(folder: Path, base_licence: str = "", data_licence: str = "") -> ModelCardFacts:
    """From the run's own records, where the folder is a run's RUN/pipeline; licences as given."""
    record, step = folder.parent / "config.json", folder / "training.json"
    if not (record.is_file() and step.is_file()):
        return ModelCardFacts(base_licence=base_licence, data_licence=data_licence)
    config = read_json(record)
    optim, loader, loss = (config.get(name, {}) for name in ("optim", "loader", "loss"))
    training = {
        "steps": read_json(step).get("step"),
        "batch": loader.get("batch"),
        "frames": loader.get("frames"),
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
    )


def render_card(
    folder: PipelineFolder, held, dtype: str, warnings: list[str], facts: ModelCardFacts
) -> str:
    """The README.md. held: `exporting.Target`."""
    unet = folder.unet
    own = held.class_name != "UNet2DConditionModel"
    rows = {
        "U-Net": f"{held.class_name} ({'diffusers' if held.stock else 'unet/inflated_unet.py'}), {unet.in_channels} input channels",
        "temporal layers": ", ".join(unet.temporal) or "none",
        "prediction": folder.scheduler.get("prediction_type", "epsilon"),
        "weights": dtype,
        "base": facts.base or UNKNOWN,
        "licence of the base": facts.base_licence or UNKNOWN,
        "data": ", ".join(facts.data) or UNKNOWN,
        "licence of the data": facts.data_licence or UNKNOWN,
        **{name: json.dumps(value) for name, value in facts.training.items() if value is not None},
    }
    if folder.sampling:
        rows["sampling defaults"] = json.dumps(folder.sampling)
    head = [
        "---",
        "library_name: diffusers",
        f"pipeline_tag: {'video-to-video' if own else 'image-to-image'}",
        "tags: [ivid2vid_jax, instruction-editing]",
        "---",
    ]
    table = [
        "| what | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]
    noted = ["", "Note:", "", *(f"- {warning}" for warning in warnings)] if warnings else []
    use = ["", "```python", USE["pipeline" if own else "stock"], "```"]
    back = [
        "",
        "`python -m ivid2vid_jax.convert import FOLDER NEW` brings it back to JAX, with what PyTorch has trained of it.",
    ]
    return "\n".join(
        [
            *head,
            "",
            f"# {folder.path.name}",
            "",
            "Exported by ivid2vid_jax.",
            *use,
            "",
            *table,
            *noted,
            *back,
            "",
        ]
    )

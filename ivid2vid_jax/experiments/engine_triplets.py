"""Triplets that the data engine makes for an arm of an experiment, once for all its seeds."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.fingerprints import hashed_settings
from ivid2vid_jax.synthesis.run_stages import run_stages
from ivid2vid_jax.synthesis.sources import open_clip_source
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.json_files import write_json

STATISTICS = "statistics.json"
COLUMNS = (
    "triplets of",
    "clips",
    "with instructions",
    "edits made",
    "correct edits [95%]",
    "kept by the filter",
    "correct among kept (precision) [95%]",
    "kept among correct (recall) [95%]",
)


@dataclasses.dataclass(frozen=True)
class EngineTriplets:
    """How the triplets of an arm are made.

    Attributes:
        engine: a recipe of the data engine. Its `output` is a name: arms with the same name (they
            may differ in the filter only) share clips and edits.
        captions: clip id -> caption, replaces the clip's own caption.
    """

    engine: SynthesisConfig
    captions: Callable[[str], str] | None = None


def make_triplets(triplets: EngineTriplets, folder: Path, shared: Path) -> Path:
    """Makes the dataset in folder/dataset; the engine works in shared/<output> and can resume.

    Raises:
        UserError: the folder holds triplets of another recipe; and errors of the engine.
    """
    engine, captions = working_config(triplets, shared)
    recipe = {"engine": hashed_settings(triplets.engine), "captions": captions}
    recipe = json.loads(json.dumps(recipe, default=str))
    if folder.is_dir():
        if json.loads((folder / "recipe.json").read_text()) != recipe:
            raise UserError(
                f"{folder}: holds triplets of another recipe of the data engine; delete it, or "
                "name a new --output"
            )
        return folder / "dataset"
    run_stages(Engine(engine))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as temporary:
        shutil.copytree(engine.output / "dataset", temporary / "dataset")
        shutil.copy(engine.output / STATISTICS, temporary)
        write_json(temporary / "recipe.json", recipe)
    return folder / "dataset"


def working_config(
    triplets: EngineTriplets, shared: Path
) -> tuple[SynthesisConfig, dict[str, str]]:
    """The engine's recipe with its working folder, and the captions that replace the clips' own.

    The captions are written to a file that the recipe names.
    """
    engine = dataclasses.replace(triplets.engine, output=shared / triplets.engine.output)
    if not triplets.captions:
        return engine, {}
    captions = {id: triplets.captions(id) for id in open_clip_source(engine).fingerprints()}
    file = shared / f"{triplets.engine.output}-captions.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(
            json.dumps({"id": id, "caption": caption}) + "\n" for id, caption in captions.items()
        )
    )
    return dataclasses.replace(engine, captions=CaptionsConfig(source=str(file))), captions


def table(folders: dict[str, Path]) -> str:
    """Markdown: how many items each stage leaves and how many of them the checker passes.

    Args:
        folders: of `make_triplets`, by arm.
    """
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for arm, folder in folders.items():
        statistics = json.loads((folder / STATISTICS).read_text())
        stages = [statistics["stages"][name] for name in ("clips", "instructions", "edits")]
        truth = statistics.get("truth", {})
        cells = [
            arm,
            *(f"{stage['accepted']} of {stage['items']}" for stage in stages),
            share(truth.get("edits that pass")),
            str(statistics["triplets"]),
            share(truth.get("precision")),
            share(truth.get("recall")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def share(statistic: dict | None) -> str:
    """A share with its interval; "-" if the truth is unknown or there are no items."""
    if not statistic or not statistic["count"]:
        return "-"
    low, high = statistic["interval"]
    return f"{100 * statistic['share']:.1f}% [{100 * low:.0f}, {100 * high:.0f}]"

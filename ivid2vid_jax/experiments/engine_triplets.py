"""Triplets that the data engine makes for an experiment's arm, once for all its seeds, and what each of the engine's stages loses."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ivid2vid_jax.synthesis.captions import CaptionsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.run_stages import run_stages
from ivid2vid_jax.synthesis.sources import open_source
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json

STATISTICS = "statistics.json"


@dataclasses.dataclass(frozen=True)
class EngineTriplets:
    """engine: a recipe of the data engine; its `output` is a name, and arms that share one, and so differ in the filter alone, share clips and edits.
    captions: clip id -> what is said of the clip in the place of its own caption.
    """

    engine: SynthesisConfig
    captions: Callable[[str], str] | None = None


def make_triplets(made: EngineTriplets, folder: Path, shared: Path) -> Path:
    """The dataset, in folder/dataset; the engine works in shared/<output>, where it goes on if it was stopped.

    Raises UserError where the folder holds triplets of another recipe, and what the engine raises.
    """
    engine, told = working_config(made, shared)
    recipe = json.loads(
        json.dumps({"engine": dataclasses.asdict(made.engine), "captions": told}, default=str)
    )
    if folder.is_dir():
        if json.loads((folder / "recipe.json").read_text()) != recipe:
            raise UserError(
                f"{folder}: holds triplets of another recipe of the data engine; delete it, or name a new --output"
            )
        return folder / "dataset"
    run_stages(Engine(engine))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as temporary:
        shutil.copytree(engine.output / "dataset", temporary / "dataset")
        shutil.copy(engine.output / STATISTICS, temporary)
        write_json(temporary / "recipe.json", recipe)
    return folder / "dataset"


def working_config(made: EngineTriplets, shared: Path) -> tuple[SynthesisConfig, dict[str, str]]:
    """(the recipe with its place of work, what its clips are said to show instead of their own captions), the latter written where the engine reads it."""
    engine = dataclasses.replace(made.engine, output=shared / made.engine.output)
    if not made.captions:
        return engine, {}
    told = {id: made.captions(id) for id in open_source(engine).marks()}
    file = shared / f"{made.engine.output}-captions.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(json.dumps({"id": id, "caption": caption}) + "\n" for id, caption in told.items())
    )
    return dataclasses.replace(engine, captions=CaptionsConfig(source=str(file))), told


def table(folders: dict[str, Path]) -> str:
    """Markdown: of each arm's folder, how many items are left after each stage, and how many of them are right by the world's checker."""
    head = "| triplets of | clips | with instructions | edits made | right [95%] | kept by the filter | right ones of these [95%] | right ones that are kept [95%] |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for arm, folder in folders.items():
        found = json.loads((folder / STATISTICS).read_text())
        counts = [
            f"{found['stages'][stage]['accepted']} of {found['stages'][stage]['items']}"
            for stage in ("clips", "instructions", "edits")
        ]
        right, precision, recall = (
            share(found.get("truth", {}).get(name))
            for name in ("edits that pass", "precision", "recall")
        )
        lines.append(
            "| "
            + " | ".join([arm, *counts, right, str(found["triplets"]), precision, recall])
            + " |"
        )
    return "\n".join(lines)


def share(found: dict | None) -> str:
    """With its interval; "-" where the truth is not known, or of nothing."""
    if not found or not found["count"]:
        return "-"
    low, high = found["interval"]
    return f"{100 * found['share']:.1f}% [{100 * low:.0f}, {100 * high:.0f}]"

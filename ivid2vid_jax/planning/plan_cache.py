"""Caches costs of layers and plans of steps on disk, keyed by program, code and compiler."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ivid2vid_jax.parallel import runtime
from ivid2vid_jax.planning.stages import LayerCost, LayerStage, compile_stage
from ivid2vid_jax.planning.step_plan import StepPlan
from ivid2vid_jax.utils.json_files import read_json, write_json


def cached_layer_cost(
    stage: LayerStage, mesh: Mesh, remat: str | None, effort: float, cache: Path | None
) -> LayerCost:
    """The cost of a layer, from the cache if it was compiled before; see `stages.compile_stage`."""
    device = mesh.devices.flat[0]
    key = digest(
        [
            stage.key,
            remat,
            effort,
            device.device_kind,
            dict(mesh.shape),
            compiler_version(mesh),
            source_digest(),
        ]
    )
    file = cache / f"{key}.json" if cache else None
    if file and file.is_file():
        return LayerCost(**read_json(file))
    cost = compile_stage(stage, mesh, remat, effort)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dataclasses.asdict(cost))
    return cost


def digest(value: Any) -> str:
    """A short SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:24]


def compiler_version(mesh: Mesh) -> list[Any]:
    """Versions and options that determine what is compiled for the devices of a mesh."""
    device = mesh.devices.flat[0]
    return [
        *(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")),
        device.client.platform_version,
        runtime.compiler_options(device),
    ]


@functools.cache
def source_digest(*packages: str) -> str:
    """SHA-256 of the source files of packages, so that a change of the code invalidates plans.

    The default is what determines how a layer is compiled.
    """
    root = Path(__file__).parents[1]
    files = [
        file
        for package in packages or ("models", "planning")
        for file in sorted((root / package).glob("*.py"))
    ]
    files.append(root / "parallel" / "sharding.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class PlanCache:
    """The plans of one program, by layers and as a whole.

    Args:
        program: what identifies the program, as JSON.
        mesh: devices and axes.
        folder: of the cache.
    """

    def __init__(self, program: list[Any], mesh: Mesh, folder: Path):
        code = [source_digest(), source_digest("diffusion", "training")]
        key = digest([program, compiler_version(mesh), *code])
        self.files = {True: folder / f"{key}-whole.json", False: folder / f"{key}-layers.json"}

    def load(self, whole: bool, effort: float | None = None) -> StepPlan | None:
        """The plan with a compiler effort (None: any), or None if there is none."""
        if not self.files[whole].is_file():
            return None
        record = read_json(self.files[whole])
        if effort is not None and effort != record["effort"]:
            return None
        return StepPlan.from_json(record["plan"])

    def save(self, plan: StepPlan, effort: float) -> None:
        """Keeps a plan, instead of an older one of its kind."""
        file = self.files[plan.whole]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"plan": plan.to_json(), "effort": effort})

"""RUN/pipeline: the averaged weights as a pipeline folder, whole or not at all."""

from pathlib import Path

import flax
import jax
import numpy as np

from ivid2vid_jax.training.params import flatten, unflatten
from ivid2vid_jax.training.step import TrainState
from ivid2vid_jax.utils.json_files import read_json, write_json
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.pipeline_folder import (
    ClipFolder,
    PipelineFolder,
    param_shapes,
    save_folder,
)


def ema_params(state: TrainState) -> dict[str, jax.Array]:
    """The EMA of the trained weights, or the weights themselves where none is kept."""
    return state.ema or state.params


def on_host(params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Whole arrays in host memory, one after the other; every process takes part, and each gets them."""
    return {
        name: np.asarray(leaf if leaf.is_fully_addressable else gather(leaf))
        for name, leaf in sorted(params.items())
    }


def gather(leaf: jax.Array) -> jax.Array:
    sharding = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=sharding)(leaf)


def write_pipeline(
    run: Path,
    step: int,
    folder: PipelineFolder | ClipFolder,
    source: PipelineFolder | ClipFolder | None,
    trained: dict[str, jax.Array],
    frozen: dict[str, jax.Array],
) -> None:
    """Writes RUN/pipeline in the place of the one before. Frozen weights are those of `source` as it holds them, if there is one."""
    with jax.transfer_guard("allow"):
        weights = on_host({**frozen, **trained})
        if jax.process_index():
            return
        if source is not None:
            weights |= stored(source, {name: weights[name].shape for name in frozen})
        save_folder(run / "pipeline", folder, unflatten(weights), replace=True)
        write_json(run / "pipeline" / "training.json", {"step": step})


def exported_step(run: Path) -> int | None:
    """The step whose weights RUN/pipeline holds; None where there is no whole one."""
    file = run / "pipeline" / "training.json"
    return read_json(file)["step"] if file.is_file() else None


def stored(source: PipelineFolder | ClipFolder, wanted: dict[str, tuple]) -> dict[str, np.ndarray]:
    """The wanted leaves that the source folder holds in the same shape, in the type they are stored in."""
    found = {}
    for component, net in source.models.items():
        if any(name.startswith(f"{component}/") for name in wanted):
            tree = dict(
                components.load_component_arrays(
                    component,
                    source.component_dir(component),
                    param_shapes(component, net),
                    skip=source.skip(component),
                )
            )
            found |= flatten({component: flax.traverse_util.unflatten_dict(tree)})
    return {
        name: found[name]
        for name, shape in wanted.items()
        if name in found and found[name].shape == shape
    }

"""How long training waits for RUN/pipeline, at the size of Stable Diffusion 1.5.

    python -m tests.benchmarks.checkpoint_pause WORK [--trained temporal]

WORK: an empty folder with 15 GB of free space. Weights are random. Prints JSON: seconds that the
step's path waits if the pipeline is written there (as until November 2026, with every checkpoint)
and now; the time of a step (a matrix product) beside the background; and what a pod of 16 chips
with `fsdp` 16 moves: bytes that were gathered leaf by leaf into the memory of every process, and
bytes that are gathered now.
"""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax import assets
from ivid2vid_jax.planning.programs import planned_folder
from ivid2vid_jax.training import params as names
from ivid2vid_jax.training.config import OptimConfig, TrainConfig
from ivid2vid_jax.training.pipeline_export import Weights, write_pipeline
from ivid2vid_jax.utils.background import Background
from ivid2vid_jax.weights.pipeline_folder import param_shapes, save_folder


def random_weights(shapes: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Name -> float32 random values."""
    return {name: rng.random(leaf.shape, np.float32) for name, leaf in shapes.items()}


def flat_shapes(folder) -> dict:
    return names.flatten({name: param_shapes(name, net) for name, net in folder.models.items()})


def step_seconds(x: jax.Array, until) -> list[float]:
    """Times of matrix products while `until()` is false, at least five."""
    product, seconds = jax.jit(lambda x: x @ x), []
    product(x).block_until_ready()
    while len(seconds) < 5 or not until():
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return seconds


def make_run(work: Path, trained_pattern: str):
    """Returns the networks of a run, the folder it started from, and its weights."""
    config = TrainConfig(
        model="stable-diffusion-v1-5/stable-diffusion-v1-5",
        optim=OptimConfig(trainable=(trained_pattern,)),
    )
    rng = np.random.default_rng(0)
    folder = dataclasses.replace(planned_folder(config), path=work / "source")
    unet = dataclasses.replace(folder.unet, in_channels=4, temporal=())
    source = dataclasses.replace(folder, unet=unet)
    shutil.copytree(assets.folder() / "shapes-edit" / "tokenizer", work / "source" / "tokenizer")
    initial = random_weights(flat_shapes(source), rng)
    save_folder(work / "filled", source, names.unflatten(initial))
    shutil.rmtree(work / "source")
    (work / "filled").rename(work / "source")

    shapes = flat_shapes(folder)
    trained_names = names.trainable(shapes, (trained_pattern,))
    trained, frozen = {}, {}
    for name, leaf in shapes.items():
        old = initial.pop(name, None)
        is_stored = old is not None and old.shape == leaf.shape
        value = jnp.array(old if is_stored else rng.random(leaf.shape, np.float32))
        (trained if name in trained_names else frozen)[name] = value
    return folder, source, trained, frozen


def main(work: Path, trained_pattern: str) -> None:
    folder, source, trained, frozen = make_run(work, trained_pattern)

    start = time.perf_counter()
    weights = Weights.collect(trained, frozen, source)
    write_pipeline(work / "run", 1, folder, source, weights)
    before = time.perf_counter() - start

    x = jnp.ones((2048, 2048))
    alone = step_seconds(x, lambda: True)
    with Background() as background:
        start = time.perf_counter()
        weights = Weights.collect(trained, frozen, source)
        background.start("export", lambda: write_pipeline(work / "run", 2, folder, source, weights))
        pause = time.perf_counter() - start
        beside = step_seconds(x, lambda: not background.is_running)
        total = time.perf_counter() - start

    trained_bytes, frozen_bytes = (
        sum(leaf.nbytes for leaf in tree.values()) for tree in (trained, frozen)
    )
    gathered = sum(leaf.nbytes for leaf in weights.arrays.values())
    share = 15 / 16  # of a leaf that lies on other chips
    results = {
        "trained_gb": trained_bytes / 1e9,
        "frozen_gb": frozen_bytes / 1e9,
        "pause_before_s": before,
        "pause_now_s": pause,
        "background_s": total,
        "step_alone_s": float(np.median(alone)),
        "step_beside_background_s": float(np.median(beside)),
        "pod_received_per_chip_before_gb": share * (trained_bytes + frozen_bytes) / 1e9,
        "pod_received_per_chip_now_gb": share * gathered / 1e9,
        "pod_programs_before": len(trained) + len(frozen),
        "pod_programs_now": 1,
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--trained", default="temporal")
    arguments = parser.parse_args()
    main(arguments.work, arguments.trained)

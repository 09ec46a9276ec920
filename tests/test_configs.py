"""Every recipe loads, states its command and trains as its tiny twin.

The twin has the same options with a tiny model and tiny data.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.training.config import NetConfig, TrainConfig
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.utils.cli import recipe_loader

RECIPES = sorted(
    path
    for path in Path("configs").rglob("*.py")
    if path.parent.name != "experiments" and not path.stem.startswith("synthesis_")
)


def load(path: Path) -> TrainConfig:
    from ivid2vid_jax.train import recipe

    return recipe(path)


def twin(config: TrainConfig, model: Path, data: Path, output: Path) -> TrainConfig:
    """The recipe at sizes that compile in seconds, with the same training options."""
    from tests.support.tiny_run import NET

    loader = dataclasses.replace(
        config.loader, batch=4, frames=min(2, config.loader.frames), size=16, workers=0
    )
    net = dataclasses.replace(
        NET, temporal=config.net.temporal, prediction_type=config.net.prediction_type
    )
    return dataclasses.replace(
        config,
        output=str(output),
        model=str(model) if config.model else None,
        data=(str(data),) if config.data != ("shapes",) else config.data,
        steps=3,
        loader=loader,
        net=net if config.model is None else NetConfig(temporal=config.net.temporal),
        optim=dataclasses.replace(
            config.optim, warmup=1, accumulation=min(config.optim.accumulation, 2)
        ),
        checkpoint=dataclasses.replace(config.checkpoint, every=2),
        log=dataclasses.replace(
            config.log, eval_every=3, eval_batches=1, sample_every=0, benchmark=0
        ),
    )


@pytest.mark.parametrize(
    "path", sorted(Path("configs").glob("synthesis_*.py")), ids=lambda path: path.stem
)
def test_recipes_of_the_data_engine(path):
    """Each docstring has the command."""
    assert f"python -m ivid2vid_jax.synthesize --config {path}" in path.read_text()
    recipe_loader(SynthesisConfig)(path).check()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from ivid2vid_jax import prepare

    folder = tmp_path_factory.mktemp("data") / "triplets"
    prepare.run(
        prepare.PrepareArgs(
            data="shapes", output=folder, count=24, size=16, frames=3, validation=0.3, workers=1
        )
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny folder like Stable Diffusion's, with 4 input channels."""
    from tests.support import factory

    return factory.save_pipeline(
        tmp_path_factory.mktemp("base") / "sd", factory.tiny_parts(in_channels=4)
    )


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_docstring_has_command_hardware_and_time(path):
    text = path.read_text().split('"""')[1]
    assert re.search(rf"python -m ivid2vid_jax\.train --config {path}", text), text
    assert "Hardware" in text and "Time" in text
    load(path).check()


@pytest.mark.slow  # a minute or two of compiling each
@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.parent.name == "configs"], ids=lambda path: path.stem
)
def test_twin_trains(path, base, tiny, prepared, tmp_path):
    from ivid2vid_jax.training.loop import train

    config = load(path)
    model = tiny if config.model and "pix2pix" in config.model else base
    tiny_twin = twin(config, model, prepared, tmp_path / "run")
    if config.loader.cached:
        from ivid2vid_jax.training import encode_latents

        encode_latents.write_latent_cache(prepared, str(model), tiny_twin.loader, augmentations=1)
    run = train(tiny_twin)
    metrics = read_metrics(run, "train")
    assert [record["step"] for record in metrics] == [1, 2, 3]
    assert np.isfinite([record["loss"] for record in metrics]).all()
    assert metrics[-1]["frame_loss"] > 0 and read_metrics(run, "validation")[-1]["loss"] > 0

    import ivid2vid_jax

    clip = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    edited = ivid2vid_jax.load(run).edit(clip, "make it red", steps=1)
    assert edited.shape == clip.shape

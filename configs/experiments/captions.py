"""How much do captions and instructions matter for the data engine? True, wrong, and no captions.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/captions.py \
        --output runs/experiments/captions

As in the paper, instructions are made from captions, and edits from both; here by the cheap editor
and without the filter, which would hide errors. "own sentences" are those of the shapes world, with
the true edited caption: a language model without errors. "rules", the engine's offline default,
sees only the caption; without information in it, it can only ask for weather and styles, which this
world does not have. Each arm trains for equal steps, with 3 seeds.

Hardware: 2 CPU cores. Time: 20 minutes for the edits, then 12 runs of 4.5 minutes on one core.
Results: docs/experiments.md.
"""

import dataclasses
import runpy
from pathlib import Path

from ivid2vid_jax.data import shapes
from ivid2vid_jax.experiments.experiment import EngineTriplets, Experiment

shared = runpy.run_path(str(Path(__file__).with_name("data_engine.py")))
engine = dataclasses.replace(
    shared["engine"], editor="shared_noise", count=100, filter=shared["no_filter"]
)


def triplets(name: str, instructions: str, captions=None) -> EngineTriplets:
    return EngineTriplets(
        dataclasses.replace(engine, output=Path(name), instructions=instructions), captions
    )


def other_caption(id: str) -> str:
    """The caption of a clip that is not in the dataset."""
    index = engine.count + int(id.rpartition("-")[2])
    return shapes.caption(shapes.sample_spec(engine.seed, index).scene)


synthesized = {
    "true captions, own sentences": triplets("own", "shapes"),
    "true captions, rules": triplets("rules", "rules"),
    "wrong captions, rules": triplets("rules-wrong", "rules", other_caption),
    "no captions, rules": triplets("rules-none", "rules", lambda id: "a clip"),
}
experiment = Experiment(
    question=(
        "Equal steps on triplets that the data engine made, from the same image editor: what "
        "captions and instructions are worth."
    ),
    arms=dict.fromkeys(synthesized, shared["base"]),
    synthesized=synthesized,
    against="true captions, own sentences",
    **shared["protocol"],
)

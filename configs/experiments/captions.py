"""What do captions and instructions have to say? The data engine told the truth, told of another clip, told nothing, 3 seeds, equal steps.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/captions.py --output runs/experiments/captions

The chain of the paper: instructions are made from captions, edits from both, here by the cheap editor and without the filter, which would hide what goes
wrong. "own sentences" are the shapes world's, with the true edited caption: what a language model would say that never errs. The rules (the engine's
offline default) know only the caption; from one that says nothing they can only ask for weather and styles, which this world does not have.
Hardware: 2 CPU cores. Time: 12 runs of 4.5 minutes on one core and, before them, 20 minutes of shared noise. What came out: docs/experiments.md.
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


def of_another(id: str) -> str:
    """The caption of a clip that the engine does not make."""
    index = engine.count + int(id.rpartition("-")[2])
    return shapes.caption(shapes.sample_spec(engine.seed, index).scene)


made = {
    "true captions, own sentences": triplets("own", "shapes"),
    "true captions, rules": triplets("rules", "rules"),
    "wrong captions, rules": triplets("rules-wrong", "rules", of_another),
    "no captions, rules": triplets("rules-none", "rules", lambda id: "a clip"),
}
experiment = Experiment(
    question="Equal steps on triplets that the data engine made, from the same image editor: what captions and instructions are worth.",
    arms=dict.fromkeys(made, shared["base"]),
    synthesized=made,
    against="true captions, own sentences",
    **shared["protocol"],
)

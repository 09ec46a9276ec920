"""What is lost on the way from true triplets to made ones? True edits, the cheap editor and Tune-A-Video, the filter on and off, 3 seeds, equal steps.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/data_engine.py --output runs/experiments/data_engine

Every arm trains the whole U-Net on its made triplets alone, from shapes-edit, which has seen true edits: its passed clips say what the triplets leave of that, or
add to it. Tune-A-Video has an eighth of the others' clips, so there are true edits of as few clips beside it. The second table says what each stage of
the data engine loses; the filter's thresholds are those of configs/synthesis_shapes.py. An arm of which the filter accepts nothing stops the experiment
before anything is trained.
Hardware: 2 CPU cores. Time: 18 runs of 4.5 minutes on one core and, before them, 20 minutes for the triplets. What came out: docs/experiments.md.
"""

import dataclasses
import runpy
from pathlib import Path

from ivid2vid_jax.experiments.experiment import EngineTriplets, Experiment
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.training.config import LogConfig, NetConfig, OptimConfig

shared = runpy.run_path(str(Path(__file__).with_name("frame_difference.py")))
engine: SynthesisConfig = runpy.run_path(str(Path(__file__).parents[1] / "synthesis_shapes.py"))[
    "config"
]
protocol, FEW, MANY = shared["protocol"], 24, 200  # of judging; clips
no_filter = dataclasses.replace(
    engine.filter, image=-1.0, text=-1.0, direction=-1.0, consistency=-1.0
)
base = dataclasses.replace(
    shared["with_loss"](frame_difference="match", frame_weight=0.25),
    net=NetConfig(),
    steps=150,
    optim=OptimConfig(lr=3e-4, warmup=25, ema=0.99),
    log=LogConfig(
        eval_every=0, sample_every=0
    ),  # each arm's held-out triplets are its own: their losses could not be compared
)


def triplets(editor: str, count: int, filtered: bool) -> EngineTriplets:
    found = engine.filter if filtered else no_filter
    return EngineTriplets(
        dataclasses.replace(
            engine, output=Path(f"{editor}-{count}"), editor=editor, count=count, filter=found
        )
    )


made = {
    "true edits": triplets("truth", MANY, False),
    "shared noise": triplets("shared_noise", MANY, False),
    "shared noise, filtered": triplets("shared_noise", MANY, True),
    "true edits, few": triplets("truth", FEW, False),
    "Tune-A-Video, few": triplets("tune_a_video", FEW, False),
    "Tune-A-Video, few, filtered": triplets("tune_a_video", FEW, True),
}
experiment = Experiment(
    question="Equal steps on made triplets alone, from the same image editor: edit success as a share of what true triplets give.",
    arms=dict.fromkeys(made, base),
    synthesized=made,
    against="true edits",
    **protocol,
)

"""How much is lost from true triplets to synthesised ones? Three editors, with and without filter.

    python -m ivid2vid_jax.evaluate --experiment configs/experiments/data_engine.py \
        --output runs/experiments/data_engine

Arms: true edits, the cheap editor (shared noise) and Tune-A-Video. Each trains the whole U-Net on
its own triplets only, for equal steps, with 3 seeds, from shapes-edit, which has seen true edits:
the share of passing clips shows how much of that the triplets preserve or improve. Tune-A-Video has
an eighth of the clips of the others, so there is also an arm with as few true edits. A second table
shows the losses of each stage of the data engine; the thresholds of the filter are those of
configs/synthesis_shapes.py. If the filter accepts nothing for an arm, the experiment stops before
training.

Hardware: 2 CPU cores. Time: 20 minutes for the triplets, then 18 runs of 4.5 minutes on one core.
Results: docs/experiments.md.
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
protocol = shared["protocol"]
FEW, MANY = 24, 200  # clips
no_filter = dataclasses.replace(
    engine.filter, image=-1.0, text=-1.0, direction=-1.0, consistency=-1.0
)
base = dataclasses.replace(
    shared["with_loss"](frame_difference="match", frame_weight=0.25),
    net=NetConfig(),
    steps=150,
    optim=OptimConfig(lr=3e-4, warmup=25, ema=0.99),
    # no validation: each arm has other held-out triplets, so their losses are not comparable
    log=LogConfig(eval_every=0, sample_every=0),
)


def triplets(editor: str, count: int, filtered: bool) -> EngineTriplets:
    config = dataclasses.replace(
        engine,
        output=Path(f"{editor}-{count}"),
        editor=editor,
        count=count,
        filter=engine.filter if filtered else no_filter,
    )
    return EngineTriplets(config)


synthesized = {
    "true edits": triplets("truth", MANY, False),
    "shared noise": triplets("shared_noise", MANY, False),
    "shared noise, filtered": triplets("shared_noise", MANY, True),
    "true edits, few": triplets("truth", FEW, False),
    "Tune-A-Video, few": triplets("tune_a_video", FEW, False),
    "Tune-A-Video, few, filtered": triplets("tune_a_video", FEW, True),
}
experiment = Experiment(
    question=(
        "Equal steps on made triplets alone, from the same image editor: edit success as a share "
        "of what true triplets give."
    ),
    arms=dict.fromkeys(synthesized, base),
    synthesized=synthesized,
    against="true edits",
    **protocol,
)

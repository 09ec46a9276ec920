r"""`python -m ivid2vid_jax.synthesize`: makes training triplets from unedited clips.

The shapes world:

python -m ivid2vid_jax.synthesize --output data/made

Your videos: cut them into clips, then estimate the cost of the other stages:

python -m ivid2vid_jax.synthesize --config configs/synthesis_sd15.py --videos DIR --output DIR \
    --stages clips
python -m ivid2vid_jax.synthesize --config configs/synthesis_sd15.py --videos DIR --output DIR \
    --estimate
"""

from ivid2vid_jax.synthesis.config import RENAMED, SynthesisConfig
from ivid2vid_jax.utils.cli import main, recipe_loader


def run(config: SynthesisConfig) -> None:
    """Runs the stages, or prints an estimate of what they would take."""
    from ivid2vid_jax.synthesis.engine import Engine
    from ivid2vid_jax.synthesis.run_stages import run_stages

    if config.shard == "auto":
        from ivid2vid_jax.parallel import processes
        from ivid2vid_jax.parallel.processes import DistributedConfig

        processes.initialize_distributed(DistributedConfig())
    engine = Engine(config)
    if config.estimate:
        from ivid2vid_jax.synthesis.estimate import estimate

        print(estimate(engine))
    else:
        run_stages(engine)


if __name__ == "__main__":
    main(SynthesisConfig, run, recipe_loader(SynthesisConfig), renamed=RENAMED)

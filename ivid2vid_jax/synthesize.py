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
from ivid2vid_jax.utils import cli

# Options that --help shows.
COMMON = (
    *("--videos", "--output", "--stages", "--estimate", "--count", "--base", "--editor"),
    *("--per-clip", "--clips.frames", "--clips.size", "--captions.source"),
    *("--instructions", "--chat.base-url", "--chat.model", "--filter.model"),
)


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


def main() -> None:
    """Runs the command line."""
    cli.main(
        SynthesisConfig, run, cli.recipe_loader(SynthesisConfig), renamed=RENAMED, common=COMMON
    )


if __name__ == "__main__":
    main()

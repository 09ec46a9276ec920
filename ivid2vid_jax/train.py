"""`python -m ivid2vid_jax.train`: train an editor, or the nets it is made of. Run the same command again to go on.

python -m ivid2vid_jax.train                                            # teaches the embedded editor sepia, which it has never seen
python -m ivid2vid_jax.train --config configs/sd15.py --data DIR --output RUN
"""

from ivid2vid_jax.training.config import DEFAULT, RENAMED, TrainConfig
from ivid2vid_jax.utils import cli

recipe = cli.recipe_loader(TrainConfig)


def run(config: TrainConfig) -> None:
    """Trains, and says what can be done with the result."""
    from ivid2vid_jax.evaluation import training_benchmark
    from ivid2vid_jax.training.loop import train

    training_benchmark.check_config(config)
    done = train(config, training_benchmark.run_benchmark if config.log.benchmark else None)
    if config.log.benchmark:
        print(training_benchmark.table(done))
    if config.task == "edit" and (done / "pipeline").is_dir():
        print(
            f'wrote {done}; edit with: python -m ivid2vid_jax.edit --model {done} --video in.mp4 --instruction "..." --output out.mp4'
        )


if __name__ == "__main__":
    cli.main(TrainConfig, run, recipe, DEFAULT, RENAMED)

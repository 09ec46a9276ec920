"""Trains an editor, or the networks it consists of. Run the same command again to resume.

    python -m ivid2vid_jax.train
    python -m ivid2vid_jax.train --config configs/sd15.py --data DIR --output RUN

Without arguments it teaches the embedded editor sepia, a style held out of its training.
"""

from ivid2vid_jax.training.config import DEFAULT, RENAMED, TrainConfig
from ivid2vid_jax.utils import cli, names

recipe = cli.recipe_loader(TrainConfig)
# Options that --help shows.
COMMON = (
    *("--output", "--model", "--data", "--task", "--steps"),
    *("--loader.batch", "--loader.frames", "--loader.size"),
    *("--loss.frame-weight", "--optim.lr", "--optim.trainable"),
    *("--log.eval-every", "--log.benchmark"),
)


def run(config: TrainConfig) -> None:
    """Trains, and prints the benchmark's table and how to use the result."""
    from ivid2vid_jax.evaluation import training_benchmark
    from ivid2vid_jax.training.loop import train

    config = training_benchmark.applicable(config)
    run_folder = train(config, training_benchmark.BENCHMARK if config.log.benchmark else None)
    if config.log.benchmark:
        print(training_benchmark.table(run_folder))
    if config.task == "edit" and (run_folder / "pipeline").is_dir():
        print(
            f"wrote {run_folder}; edit with: python -m ivid2vid_jax.edit --model {run_folder} "
            '--video in.mp4 --instruction "..." --output out.mp4'
        )


def main() -> None:
    """Runs the command line."""
    cli.main(TrainConfig, run, recipe, DEFAULT, RENAMED, names.TRAINING, COMMON)


if __name__ == "__main__":
    main()

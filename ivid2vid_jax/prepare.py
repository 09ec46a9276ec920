"""`python -m ivid2vid_jax.prepare`: triplets into the one format that training reads.

python -m ivid2vid_jax.prepare --data shapes --count 10000 --output data/shapes
python -m ivid2vid_jax.prepare --data pairs.csv --size 256 --fps 8 --frames 16 --codec mp4 --output data/pairs
python -m ivid2vid_jax.prepare --data data/pairs --cache-for MODEL --size 256 --frames 16     # encode it once, for `train --loader.cached`
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from ivid2vid_jax.utils.cli import main
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.progress import Progress

BAD = "bad.jsonl"
NAMED = 20  # bad triplets named on the screen; the file has them all
WITHOUT_EFFECT = (
    "output",
    "workers",
    "limit_bad",
    "cache_for",
    "cache_text",
    "augmentations",
    "stride",
    "crop",
    "flip",
)  # on what is written


@dataclasses.dataclass
class PrepareArgs:
    """Turns triplets (clip, instruction, edited clip) into a dataset for training. A stopped run goes on when it is run again."""

    data: str  # "shapes" or "shapes-crowded" (procedural worlds), a list of pairs (.csv, .jsonl or .json with src_video, tgt_video, prompt), or an InstructPix2Pix folder
    output: Path | None = None  # the dataset's folder, new or that of a run to go on with
    size: int | None = (
        None  # pixels of the shorter side, never enlarged (default 256; shapes: of each side, default 64)
    )
    fps: float | None = None  # resample both clips to this rate; left out, they keep their own
    frames: int | None = None  # take the first so many frames of a clip (default all; shapes: 8)
    codec: str = (
        "npy"  # how clips are stored: npy (exact) or mp4 (about 45 dB, a tenth of the space)
    )
    shard: int = 500  # triplets per file
    validation: float = 0.02  # share of triplets, chosen by a hash of their source clips' names, that goes into the split "validation"
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)  # processes
    limit_bad: int = (
        100  # triplets that may be left out because they cannot be read; beyond, the run stops
    )
    root: Path | None = None  # the folder that a list's paths start from (default the list's own)
    count: int | None = None  # the first so many triplets (default all; shapes: 10000)
    seed: int = 0  # shapes: which sequence
    kinds: tuple[str, ...] | None = None  # shapes: kinds of edit (default the training ones)
    split: str = "train"  # shapes: train, or eval for the combinations that training never sees
    cache_for: str | None = (
        None  # a model: encode the prepared dataset --data with it, into its latent cache, for training clips of --size and --frames
    )
    cache_text: bool = True  # cache: with the text encoder's embeddings; without, it also serves where the text encoder is trained
    augmentations: int = 1  # cache: cuts of each triplet that are kept
    stride: int = 1  # cache: as --loader.stride, likewise crop and flip
    crop: float = 1.0
    flip: float = 0.0

    def check(self) -> None:
        """UserError for a number out of range or a codec that there is not."""
        from ivid2vid_jax.data.dataset import CODECS
        from ivid2vid_jax.data.shapes import WORLDS

        if self.codec not in CODECS:
            raise UserError(f"codec {self.codec!r} is none of {', '.join(CODECS)}")
        limits = {
            "size": (8, 8192),
            "frames": (1, 10**5),
            "shard": (1, 10**6),
            "workers": (1, 1024),
            "limit_bad": (0, 10**9),
            "count": (1, 10**9),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name} {value} must be between {least} and {most}")
        if not 0 <= self.validation < 1:
            raise UserError(f"validation {self.validation} must be 0 or more and less than 1")
        if self.fps is not None and self.data in WORLDS:
            raise UserError("fps: the shapes world has its own 8 frames/s; leave --fps out")


def run(args: PrepareArgs) -> None:
    """Writes the dataset, or goes on with it, and reports what was read, written and left out. UserError for bad input."""
    args.check()
    if args.cache_for is not None:
        return write_cache(args)
    if args.output is None:
        raise UserError("--output is missing: name the dataset's folder")
    from ivid2vid_jax.data import dataset, shards
    from ivid2vid_jax.data.records import RecordMaker, split_by_origin

    reader = reader_for(args)
    items = reader.items()[: args.count]
    if not items:
        raise UserError(f"{args.data}: lists no triplet")
    planned = shards.plan_shards("triplets", split_by_origin(items, args.validation), args.shard)
    with shards.lock_folder(args.output, settings(args)):
        if shards.is_described(args.output):
            return already_finished(args, planned)
        make = RecordMaker(reader, args.codec)
        try:
            with Progress("triplets") as progress:
                outcomes = shards.write_shards(
                    args.output,
                    planned,
                    dataset.features(),
                    make,
                    args.workers,
                    args.limit_bad,
                    progress,
                )
        except KeyboardInterrupt:
            print(
                f"interrupted; the whole shards in {args.output} are kept: run the same command again to go on",
                file=sys.stderr,
            )
            sys.exit(130)
        bad = write_bad(args.output, outcomes)
        if len(bad) > args.limit_bad:
            name_bad(args.output, bad)
            raise UserError(
                f"{len(bad)} triplets cannot be read, more than --limit-bad {args.limit_bad}; mend them and run the same again to go on"
            )
        if len(bad) == len(items):
            name_bad(args.output, bad)
            raise UserError(
                f"{args.data}: none of its {len(items)} triplets can be read; the reasons are in {args.output / BAD}"
            )
        shards.write_metadata(
            args.output,
            dataset.features(),
            outcomes,
            f"Triplets (clip, instruction, edited clip) from {Path(args.data).name}.",
        )
        report(args.output, items, outcomes)


def write_cache(args: PrepareArgs) -> None:
    """Encodes the prepared dataset `args.data` for a model."""
    if not Path(args.data).is_dir() or args.output is not None:
        raise UserError(
            "--cache-for goes with --data FOLDER, a dataset that prepare wrote, and without --output: the cache lies within it"
        )
    if args.augmentations < 1:
        raise UserError(f"--augmentations {args.augmentations} must be at least 1")
    from ivid2vid_jax.data.config import LoaderConfig
    from ivid2vid_jax.training import encode_latents

    cut = LoaderConfig(
        frames=args.frames or 8,
        size=args.size or 64,
        stride=args.stride,
        crop=args.crop,
        flip=args.flip,
    )
    cut.check()
    print(
        f"wrote {encode_latents.write_latent_cache(Path(args.data), args.cache_for, cut, args.augmentations, args.cache_text)}"
    )


def reader_for(args: PrepareArgs):
    from ivid2vid_jax.data import readers
    from ivid2vid_jax.data.shapes import WORLDS

    given = {
        "kinds": args.kinds,
        "size": args.size,
        "frames": args.frames,
        "world": args.data if args.data in WORLDS else None,
    }
    world = readers.ShapesReader(
        args.count or 10_000,
        args.seed,
        args.split,
        **{name: value for name, value in given.items() if value is not None},
    )
    return readers.open_reader(
        args.data, args.root, readers.ClipSettings(args.size or 256, args.fps, args.frames), world
    )


def settings(args: PrepareArgs) -> dict:
    """The arguments that decide what is written; a path means the same from any folder."""
    from ivid2vid_jax.data.shapes import WORLDS

    values = {name: value for name, value in vars(args).items() if name not in WITHOUT_EFFECT}
    paths = {
        name: str(Path(values[name]).expanduser().resolve())
        for name in ("data", "root")
        if values[name] and values[name] not in WORLDS
    }
    return values | paths


def already_finished(args: PrepareArgs, planned: list) -> None:
    from ivid2vid_jax.data import shards

    known = shards.finished_shards(args.output, planned)
    if len(known) < len(planned):
        raise UserError(
            f"{args.output}: is finished, but {args.data} lists other triplets now or shards are gone; name another folder"
        )
    outcomes = list(known.values())
    bad = sum(len(outcome.bad) for outcome in outcomes)
    print(
        f"{args.output}: is finished already, {by_split(outcomes)}"
        + (f"; {bad} left out, see {BAD}" if bad else "")
    )


def by_split(outcomes: list) -> str:
    from ivid2vid_jax.data.shards import splits_of

    return ", ".join(f"{split} {written}" for split, written in splits_of(outcomes).items())


def write_bad(folder: Path, outcomes: list) -> list:
    """All bad items of the outcomes, also written to bad.jsonl where there are any."""
    bad = [(outcome.split, each) for outcome in outcomes for each in outcome.bad.values()]
    (folder / BAD).unlink(missing_ok=True)
    if bad:
        (folder / BAD).write_text(
            "".join(json.dumps({**vars(each), "split": split}) + "\n" for split, each in bad)
        )
    return [each for _, each in bad]


def name_bad(folder: Path, bad: list) -> None:
    for each in bad[:NAMED]:
        print(f"left out: {each.where}: {each.reason}", file=sys.stderr)
    if len(bad) > NAMED:
        print(f"left out: {len(bad) - NAMED} more, all in {folder / BAD}", file=sys.stderr)


def report(folder: Path, items: list, outcomes: list) -> None:
    bad = [each for outcome in outcomes for each in outcome.bad.values()]
    written = sum(outcome.written for outcome in outcomes)
    if written + len(bad) != len(items):
        raise RuntimeError(
            f"{len(items)} triplets were listed, {written} written and {len(bad)} left out: that does not add up"
        )
    name_bad(folder, bad)
    size = sum(outcome.size for outcome in outcomes)
    print(
        f"read {len(items)} triplets: {written} written ({by_split(outcomes)}; {size / 1e6:.1f} MB in {len(outcomes)} shards), {len(bad)} left out"
    )
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(PrepareArgs, run)

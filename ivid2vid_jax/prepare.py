"""`python -m ivid2vid_jax.prepare`: converts triplets into the one format that training reads.

python -m ivid2vid_jax.prepare --data shapes --count 10000 --output data/shapes
python -m ivid2vid_jax.prepare --data pairs.csv --size 256 --fps 8 --frames 16 --codec mp4 \
    --output data/pairs
python -m ivid2vid_jax.prepare --data data/pairs --cache-for MODEL --size 256 --frames 16

The last command encodes a prepared dataset once, for `train --loader.cached`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils import cli
from ivid2vid_jax.utils.progress import Progress

if TYPE_CHECKING:  # the commands import these late, so that --help and mistakes are quick
    from ivid2vid_jax.data.readers import Reader
    from ivid2vid_jax.data.shard_writer import BadItem, Outcome, Shard

BAD_FILE = "bad.jsonl"
MAX_NAMED = 20  # bad triplets that are printed; BAD_FILE lists all
# Arguments that do not change what is written.
WITHOUT_EFFECT = (
    *("output", "workers", "limit_bad"),
    *("cache_for", "cache_text", "augmentations", "stride", "crop", "flip"),
)
# Options that --help shows.
COMMON = (
    *("--data", "--output", "--size", "--fps", "--frames", "--codec", "--columns", "--root"),
    *("--count", "--validation", "--workers", "--cache-for"),
)
# field -> (minimum, maximum)
LIMITS = {
    "size": (8, 8192),
    "frames": (1, 10**5),
    "shard": (1, 10**6),
    "workers": (1, 1024),
    "limit_bad": (0, 10**9),
    "count": (1, 10**9),
}


@dataclasses.dataclass
class PrepareArgs:
    """Converts triplets (clip, instruction, edited clip) into a dataset for training.

    A stopped run can be continued: run the same command again.
    """

    # "shapes" or "shapes-crowded" (procedural worlds), a list of pairs (.csv, .jsonl or .json with
    # src_video, tgt_video, prompt), or an InstructPix2Pix folder
    data: str
    # folder of the dataset, a new one or that of a run to be continued
    output: Path | None = None
    # pixels of the shorter side, never enlarged (default 256); shapes: of each side (default 64)
    size: int | None = None
    # frame rate to resample both clips to (default: their own)
    fps: float | None = None
    # number of frames, from the start of a clip (default all; shapes: 8)
    frames: int | None = None
    # how clips are stored: npy (exact) or mp4 (about 45 dB, a tenth of the space)
    codec: str = "npy"
    # triplets per file
    shard: int = 500
    # share of the triplets that goes into the split "validation", by a hash of the source clip
    validation: float = 0.02
    # processes
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    # unreadable triplets that are left out before the run stops
    limit_bad: int = 100
    # folder that the paths of a list are relative to (default: the list's own)
    root: Path | None = None
    # column names of a list: src=original_image tgt=edited_image prompt=edit_prompt
    columns: tuple[str, ...] = ()
    # number of triplets, from the start (default all; shapes: 10000)
    count: int | None = None
    # shapes: seed of the sequence
    seed: int = 0
    # shapes: kinds of edit (default: all kinds of the world)
    kinds: tuple[str, ...] | None = None
    # shapes: train, or eval for the combinations that training never sees
    split: str = "train"
    # a model: encode the prepared dataset --data with it into a latent cache, for training with
    # clips of --size and --frames
    cache_for: str | None = None
    # cache: store text embeddings; without them it also serves for training the text encoder
    cache_text: bool = True
    # cache: random crops of each triplet
    augmentations: int = 1
    # cache: as --loader.stride of train
    stride: int = 1
    # cache: as --loader.crop of train
    crop: float = 1.0
    # cache: as --loader.flip of train
    flip: float = 0.0

    def check(self) -> None:
        """Raises UserError for a number out of range or an unknown codec."""
        from ivid2vid_jax.data.dataset import CODECS
        from ivid2vid_jax.data.shapes import WORLDS

        if self.codec not in CODECS:
            raise UserError(f"codec {self.codec!r} is none of {', '.join(CODECS)}")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name} {value} must be between {low} and {high}")
        if not 0 <= self.validation < 1:
            raise UserError(f"validation {self.validation} must be 0 or more and less than 1")
        if self.fps is not None and self.data in WORLDS:
            raise UserError("fps: the shapes world has its own 8 frames/s; leave --fps out")


def run(args: PrepareArgs) -> None:
    """Writes a dataset or a latent cache, or continues it; UserError for wrong input."""
    args.check()
    if args.cache_for is not None:
        write_cache(args, args.cache_for)
    elif args.output is None:
        raise UserError("--output is missing: name the dataset's folder")
    else:
        write_dataset(args, args.output)


# ---- a dataset ----


def write_dataset(args: PrepareArgs, output: Path) -> None:
    """Writes the dataset and reports what was read, written and left out."""
    from ivid2vid_jax.data import dataset, shards
    from ivid2vid_jax.data.records import split_by_origin

    reader = open_reader(args)
    items = reader.items()[: args.count]
    if not items:
        raise UserError(f"{args.data}: lists no triplet")
    planned = shards.plan_shards("triplets", split_by_origin(items, args.validation), args.shard)
    with shards.lock_folder(output, stored_arguments(args)):
        if shards.is_finished(output):
            report_finished(args.data, output, planned)
            return
        outcomes = write_triplets(args, output, reader, planned)
        bad = write_bad_file(output, outcomes)
        if len(bad) > args.limit_bad:
            print_bad(output, bad)
            raise UserError(
                f"{len(bad)} triplets cannot be read, more than --limit-bad {args.limit_bad}; "
                "repair them and run the same again to continue"
            )
        if len(bad) == len(items):
            print_bad(output, bad)
            raise UserError(
                f"{args.data}: none of its {len(items)} triplets can be read; "
                f"the reasons are in {output / BAD_FILE}"
            )
        description = f"Triplets (clip, instruction, edited clip) from {Path(args.data).name}."
        shards.write_metadata(output, dataset.features(), outcomes, description)
        report(output, len(items), outcomes)


def open_reader(args: PrepareArgs) -> "Reader":
    """The reader of --data."""
    from ivid2vid_jax.data import readers
    from ivid2vid_jax.data.shapes import WORLDS

    fields: dict[str, Any] = {"kinds": args.kinds, "size": args.size, "frames": args.frames}
    if args.data in WORLDS:
        fields["world"] = args.data
    fields = {name: value for name, value in fields.items() if value is not None}
    shapes_reader = readers.ShapesReader(args.count or 10_000, args.seed, args.split, **fields)
    clips = readers.ClipSettings(args.size or 256, args.fps, args.frames)
    return readers.open_reader(args.data, args.root, clips, shapes_reader, args.columns)


def stored_arguments(args: PrepareArgs) -> dict[str, Any]:
    """The arguments that decide what is written, with absolute paths."""
    from ivid2vid_jax.data.shapes import WORLDS

    values = {name: value for name, value in vars(args).items() if name not in WITHOUT_EFFECT}
    paths = {
        name: str(Path(values[name]).expanduser().resolve())
        for name in ("data", "root")
        if values[name] and values[name] not in WORLDS
    }
    if not values["columns"]:
        del values["columns"]  # as datasets of version 0.1 were recorded
    return values | paths


def write_triplets(
    args: PrepareArgs, output: Path, reader: "Reader", planned: "list[Shard]"
) -> "list[Outcome]":
    """Writes the shards that are missing; KeyboardInterrupt says that finished ones are kept."""
    from ivid2vid_jax.data import dataset, shards
    from ivid2vid_jax.data.records import RecordMaker

    make = RecordMaker(reader, args.codec)
    try:
        with Progress("triplets") as progress:
            return shards.write_shards(
                output, planned, dataset.features(), make, args.workers, args.limit_bad, progress
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the finished shards in {output} are kept: run the same command again to continue"
        ) from None


# ---- reports ----


def report_finished(data: str, output: Path, planned: "list[Shard]") -> None:
    """Prints what a finished dataset holds; UserError if it is not the one that was planned."""
    from ivid2vid_jax.data import shards

    outcomes = list(shards.finished_shards(output, planned).values())
    if len(outcomes) < len(planned):
        raise UserError(
            f"{output}: is finished, but {data} lists other triplets now or shards are missing; "
            "name another folder"
        )
    bad = sum(len(outcome.bad) for outcome in outcomes)
    left_out = f"; {bad} left out, see {BAD_FILE}" if bad else ""
    print(f"{output}: is finished already, {split_sizes(outcomes)}{left_out}")


def split_sizes(outcomes: "list[Outcome]") -> str:
    """Number of triplets of each split, as text."""
    from ivid2vid_jax.data.shards import splits_of

    return ", ".join(f"{split} {written}" for split, written in splits_of(outcomes).items())


def write_bad_file(folder: Path, outcomes: "list[Outcome]") -> "list[BadItem]":
    """Returns all bad items, and lists them in BAD_FILE if there are any."""
    bad = [(outcome.split, item) for outcome in outcomes for item in outcome.bad.values()]
    (folder / BAD_FILE).unlink(missing_ok=True)
    if bad:
        lines = [json.dumps({**vars(item), "split": split}) + "\n" for split, item in bad]
        (folder / BAD_FILE).write_text("".join(lines))
    return [item for _, item in bad]


def print_bad(folder: Path, bad: "list[BadItem]") -> None:
    """Prints the first bad items to stderr."""
    for item in bad[:MAX_NAMED]:
        print(f"left out: {item.where}: {item.reason}", file=sys.stderr)
    if len(bad) > MAX_NAMED:
        more = len(bad) - MAX_NAMED
        print(f"left out: {more} more, all in {folder / BAD_FILE}", file=sys.stderr)


def report(folder: Path, listed: int, outcomes: "list[Outcome]") -> None:
    """Prints what was read, written and left out."""
    bad = [item for outcome in outcomes for item in outcome.bad.values()]
    written = sum(outcome.written for outcome in outcomes)
    if written + len(bad) != listed:
        raise RuntimeError(
            f"{listed} triplets were listed, {written} written and {len(bad)} left out: "
            "that does not add up"
        )
    print_bad(folder, bad)
    megabytes = sum(outcome.size for outcome in outcomes) / 1e6
    print(
        f"read {listed} triplets: {written} written ({split_sizes(outcomes)}; "
        f"{megabytes:.1f} MB in {len(outcomes)} shards), {len(bad)} left out"
    )
    print(f"wrote {folder}")


# ---- a latent cache ----


def write_cache(args: PrepareArgs, model: str) -> None:
    """Encodes the prepared dataset --data for a model."""
    if not Path(args.data).is_dir() or args.output is not None:
        raise UserError(
            "--cache-for needs --data FOLDER, a dataset that prepare wrote, and no --output: "
            "the cache is written into that folder"
        )
    if args.augmentations < 1:
        raise UserError(f"--augmentations {args.augmentations} must be at least 1")
    from ivid2vid_jax.data.config import LoaderConfig
    from ivid2vid_jax.training import encode_latents

    config = LoaderConfig(
        frames=args.frames or 8,
        size=args.size or 64,
        stride=args.stride,
        crop=args.crop,
        flip=args.flip,
    )
    config.check("--")
    folder = encode_latents.write_latent_cache(
        Path(args.data), model, config, args.augmentations, args.cache_text
    )
    print(f"wrote {folder}")


def main() -> None:
    """Runs the command line."""
    cli.main(PrepareArgs, run, common=COMMON)


if __name__ == "__main__":
    main()

"""The prepare command on pairs of video files."""

import csv
import json
import sys

from ivid2vid_jax import prepare
from ivid2vid_jax.data.dataset import open_dataset
from tests.support.command import run_command
from tests.video.test_video import moving_square, write


def options(text):
    """Command-line words from a string."""
    return text.split()


def run_prepare(capsys, data, output, *words):
    """(exit code, stderr, stdout) of prepare; in this process only, unless --workers is given."""
    words = words if "--workers" in words else (*words, "--workers", "1")
    return run_command(
        capsys, prepare.PrepareArgs, prepare.run, "--data", data, "--output", output, *words
    )


def prepare_command(data, output, *words):
    """The command line of prepare in a process of its own."""
    module = (sys.executable, "-m", "ivid2vid_jax.prepare")
    return [*map(str, (*module, "--data", data, "--output", output, *words))]


def write_pairs(folder, count=5, **clips):
    """Writes a CSV of `count` pairs; clips: keyword arguments of `write` by file name, as "s1"."""
    folder.mkdir()
    rows = [["src_video", "tgt_video", "prompt", "edit_type"]]
    for i in range(count):
        for name in (f"s{i}", f"t{i}"):
            write(folder / f"{name}.mp4", **{"clip": moving_square(), **clips.get(name, {})})
        rows.append([f"s{i}.mp4", f"t{i}.mp4", f"make it {i}, at once", "style"])
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "pairs.csv"


def read_triplets(folder):
    """Every triplet of a dataset by id."""
    info = json.loads((folder / "dataset_info.json").read_text())
    datasets = [open_dataset(folder, split["name"]) for split in info["splits"]]
    triplets = [dataset[i] for dataset in datasets for i in range(len(dataset))]
    return {triplet.id: triplet for triplet in triplets}


def read_shards(folder):
    """File name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.glob("triplets-*")}

"""Runs of the data engine in tests, and what they leave in the output folder."""

import json
import re
from pathlib import Path

from ivid2vid_jax import synthesize
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.synthesis.config import STAGES
from ivid2vid_jax.synthesis.filter import FilterConfig

KEEP_ALL = FilterConfig(image=-1, text=-1, direction=-1, consistency=-1)


def run_output(capsys, config) -> str:
    """Runs the stages; returns what they print."""
    synthesize.run(config)
    return capsys.readouterr().out


def read_triplets(config) -> list:
    """All triplets of the dataset."""
    folder = config.output / "dataset"
    splits = [open_dataset(folder, split) for split in open_dataset(folder).splits]
    return [split[i] for split in splits for i in range(len(split))]


def dataset_bytes(folder: Path) -> dict[str, bytes]:
    """File name -> bytes of the dataset's records."""
    return {
        path.name: path.read_bytes()
        for path in sorted((folder / "dataset").glob("*.array_record*"))
    }


def manifest_lines(folder: Path, stage: str) -> list[dict]:
    """Lines of a stage's manifest."""
    return [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]


def read_results(folder: Path) -> dict[str, list[dict]]:
    """Stage -> its lines, sorted, without times. Asserts that no item was processed twice."""
    results = {}
    for stage in STAGES[:-1]:
        lines = manifest_lines(folder, stage)
        assert len({line["id"] for line in lines}) == len(lines), f"{stage}: an item was repeated"
        for line in lines:
            line.pop("time")
            line.pop("seconds", None)
        results[stage] = sorted(lines, key=lambda line: line["id"])
    return results


def write_recipe(config, file: Path) -> Path:
    """A recipe file that defines the config."""
    text = repr(config).replace(repr(config.output), f"Path({str(config.output)!r})")
    names = sorted(set(re.findall(r"\b([A-Z]\w+Config)\b", text)))
    file.write_text(
        "from pathlib import Path\n"
        f"from ivid2vid_jax.synthesis.config import {', '.join(names)}\n"
        f"config = {text}\n"
    )
    return file


def write_json_lines(file: Path, rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

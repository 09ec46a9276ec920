"""launch/colab.ipynb: it is a notebook, its commands are known, and it runs from top to bottom on CPU with tiny substitutions."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from ivid2vid_jax import assets

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"


def cells() -> dict[str, str]:
    """Tag -> code."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return {
        cell["metadata"]["tags"][0]: "".join(cell["source"])
        for cell in found
        if cell["cell_type"] == "code"
    }


def test_it_holds_no_output_and_every_step_of_the_way():
    notebook = json.loads(NOTEBOOK.read_text())
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    assert list(cells()) == [
        "parameters",
        "install",
        "embedded",
        "shapes",
        "curve",
        "own",
        "export",
    ]
    for name, code in cells().items():
        compile(code, name, "exec")
    for config in re.findall(r"--config (\S+)", "".join(cells().values())):
        assert (ROOT / config).is_file()


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tiny, tmp_path):
    """Tiny nets and clips in the place of the real ones."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    (tmp_path / "small.py").write_text(
        "from tests.support.tiny_run import tiny\n\nconfig = tiny('runs/x', steps=2, checkpoint__pipeline=True)\n"
    )
    clip = next(iter(assets.clips().values()))
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["src_video", "tgt_video", "prompt"],
                *([str(clip), str(clip), f"keep it, number {i}"] for i in range(60)),
            ]
        )
    smaller = "--loader.size 16 --loader.frames 2 --loader.batch 2 --optim.accumulation 2 --optim.warmup 1 --log.eval-every 0 --log.sample-every 0"
    values = {
        "DRIVE": str(tmp_path / "drive"),
        "SHAPES": f"--config {tmp_path / 'small.py'}",
        "CLIPS": str(tmp_path / "clips.csv"),
        "PREPARE": "--size 16 --frames 4 --validation 0",
        "BASE": str(tiny),
        "OWN": f"--steps 2 {smaller}",
    }
    notebook = nbformat.read(NOTEBOOK, 4)
    code = {cell.metadata.tags[0]: cell for cell in notebook.cells if cell.cell_type == "code"}
    code["parameters"].source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    environment = f"import os, sys\nos.environ['PATH'] = {str(Path(sys.executable).parent)!r} + ':' + os.environ['PATH']\nos.environ['PYTHONPATH'] = {str(ROOT)!r}\n"
    code["install"].source = (
        environment + f"sys.path.insert(0, {str(ROOT)!r})\n" + code["install"].source
    )
    nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    drive = tmp_path / "drive"
    assert (drive / "shapes" / "pipeline" / "unet" / "config.json").is_file() and (
        drive / "own" / "pipeline"
    ).is_dir()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3  # of the embedded edit, the samples, the curve
    shutil.rmtree(drive)

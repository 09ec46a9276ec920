"""launch/colab.ipynb: its structure, and a run of all its cells on the CPU with tiny models."""

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


def test_the_cells_have_no_output_valid_code_and_existing_configs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    sources = {
        cell["metadata"]["tags"][0]: "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code"
    }
    set_up, edits = ["parameters", "install"], ["embedded", "upload"]
    assert list(sources) == [*set_up, *edits, "shapes", "curve", "loggers", "own", "export"]
    assert "OWNER" not in "".join(sources.values())
    for tag, source in sources.items():
        compile(source, tag, "exec")
    for config in re.findall(r"--config (\S+)", "".join(sources.values())):
        assert (ROOT / config).is_file()


@pytest.mark.slow
def test_all_cells_run_and_run_again_after_a_restart(tiny, tmp_path):
    """With tiny models and clips.

    After the restart the cells run in reverse order: each needs the set-up cells and Drive only.
    """
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    code = {cell.metadata.tags[0]: cell for cell in notebook.cells if cell.cell_type == "code"}
    values = tiny_values(tiny, tmp_path)
    code["parameters"].source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    code["install"].source = environment_code() + code["install"].source
    pictures = run_all(notebook)
    drive = tmp_path / "drive"
    assert (drive / "shapes" / "pipeline" / "unet" / "config.json").is_file()
    assert (drive / "own" / "pipeline").is_dir()
    assert pictures == 4  # the embedded edit, one's own, the edit after training, the loss curve
    (steps,) = (drive / "shapes" / "checkpoints").glob("*")

    notebook.cells = [*list(code.values())[:2], *list(code.values())[:1:-1]]
    assert run_all(notebook) == 4
    assert (steps,) == tuple((drive / "shapes" / "checkpoints").glob("*")), "trained again"
    shutil.rmtree(drive)


def run_all(notebook) -> int:
    """Runs the cells in a new kernel; returns the number of pictures that they show."""
    nbclient = pytest.importorskip("nbclient")
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources=resources
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def tiny_values(model: Path, folder: Path) -> dict[str, str]:
    """Values of the notebook's parameters for a quick run."""
    (folder / "small.py").write_text(
        "from tests.support.tiny_run import tiny\n\n"
        "config = tiny('runs/x', steps=2, checkpoint__pipeline=True)\n"
    )
    clip = str(next(iter(assets.clips().values())))
    with (folder / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["src_video", "tgt_video", "prompt"])
        rows.writerows([clip, clip, f"keep it, number {i}"] for i in range(60))
    small_loader = "--loader.size 16 --loader.frames 2 --loader.batch 2"
    small_run = "--optim.accumulation 2 --optim.warmup 1 --log.eval-every 0 --log.sample-every 0"
    return {
        "DRIVE": str(folder / "drive"),
        "SHAPES": f"--config {folder / 'small.py'}",
        "CLIPS": str(folder / "clips.csv"),
        "PREPARE": "--size 16 --frames 4 --validation 0",
        "BASE": str(model),
        "OWN": f"--steps 2 {small_loader} {small_run}",
    }


def environment_code() -> str:
    """Makes the kernel and its subprocesses use this Python and this repository."""
    return f"""
import os, sys
os.environ["PATH"] = {str(Path(sys.executable).parent)!r} + ":" + os.environ["PATH"]
os.environ["PYTHONPATH"] = {str(ROOT)!r}
sys.path.insert(0, {str(ROOT)!r})
"""

"""The GPU benchmark's tiny twin, on a machine without what the GPU machine lacks; its fallbacks and its table."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch

from tests.benchmarks import gpu, torch_side
from tests.support.devices import QUICK

ABSENT = ("diffusers", "grain", "tensorflow_datasets", "av", "tyro")


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """Processes started from here find none of the absent packages, and compile fast rather than well."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(
            f"raise ImportError('{name} is not on the GPU machine')\n"
        )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # PyTorch's threads spin while they wait
    monkeypatch.setenv("XLA_FLAGS", QUICK)
    return tmp_path


def test_the_tiny_twin(bare_machine):
    """Both parts on both sides: equal outputs, times, and the work that utilisation is made of."""
    gpu.main(["--size", "tiny", "--output", str(bare_machine / "record.json")])
    record = json.loads((bare_machine / "record.json").read_text())
    assert [point["part"] for point in record["points"]] == ["training", "editing"] and record[
        "versions"
    ]["torch"] == torch.__version__
    for point in record["points"]:
        assert (
            0 < point["difference"] < 1e-4
            and point["ratio"] > 0
            and point["flop"] > 0
            and point["torch"]["compile"] == "none"
        )
        assert point["ours_utilisation"] is None  # of a CPU
    training, editing = record["points"]
    assert training["ours_program_gib"] > 0 and editing["latents_difference"] < 1e-3
    assert math.isclose(
        editing["flop"] / editing["sampler_steps"] / 3, training["flop"] / 3, rel_tol=0.01
    )  # of one clip, forward


def test_nets_that_differ_are_not_timed():
    clip = np.ones((1, 2, 4, 4, 4), np.float32)
    assert gpu.compared(clip * (1 + 1e-5), clip, 1e-4) == pytest.approx(1e-5, rel=0.1)
    with pytest.raises(AssertionError, match="nothing was timed"):
        gpu.compared(clip * 1.01, clip, 1e-4)


def test_a_mode_that_fails_is_followed_by_the_next_and_told(monkeypatch):
    net = torch.nn.Linear(2, 2)

    def broken(net, mode, dynamic):
        return lambda x: (_ for _ in ()).throw(RuntimeError(f"no {mode} here\nand more"))

    monkeypatch.setattr(torch, "compile", broken)
    run, how = torch_side.compiled(net, "max-autotune", lambda net: net(torch.ones(2)))
    assert run is net and how["compile"] == "none"
    assert how["failed"] == {
        "max-autotune": "RuntimeError: no max-autotune here",
        "default": "RuntimeError: no default here",
    }


def test_a_mode_that_runs_out_of_memory_is_a_failure(monkeypatch):
    def broken(net, mode, dynamic):
        return lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(torch.OutOfMemoryError):
        torch_side.compiled(torch.nn.Linear(2, 2), "max-autotune", lambda net: net(torch.ones(2)))


def test_a_part_that_fails_is_recorded_and_the_others_run(monkeypatch, tmp_path):
    def run(words, **options):
        done = {"device": "a GPU", "point": {"part": "editing", "pixels": 64}}
        training = "training" in words
        return subprocess.CompletedProcess(
            words,
            int(training),
            "" if training else json.dumps(done),
            "Traceback\nout of memory\n" if training else "",
        )

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="failed: training at 64"):
        gpu.main(["--size", "tiny", "--output", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert (
        record["points"]
        == [
            {"part": "training", "pixels": 64, "failed": "out of memory"},
            {"part": "editing", "pixels": 64},
        ]
        and record["device"] == "a GPU"
    )


def test_the_first_name_that_fits_gives_the_peak():
    assert (
        gpu.peak_of("NVIDIA H200") == 989.5e12
        and gpu.peak_of("NVIDIA H100 PCIe") == 756.5e12
        and gpu.peak_of("NVIDIA L40S") == 362e12
    )
    assert gpu.peak_of("cpu") is None

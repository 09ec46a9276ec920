"""The GPU benchmark at its tiny size, without packages that a GPU machine may lack."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch

from tests.benchmarks import gpu, gpu_parts, torch_side
from tests.support.devices import FAST_COMPILE_FLAGS

ABSENT_PACKAGES = ("diffusers", "grain", "tensorflow_datasets", "av", "tyro")


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """New processes cannot import the absent packages, and compile with few optimisations."""
    for name in ABSENT_PACKAGES:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is absent')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # idle threads of PyTorch spin
    monkeypatch.setenv("XLA_FLAGS", FAST_COMPILE_FLAGS)
    return tmp_path


@pytest.mark.slow
def test_the_tiny_benchmark(bare_machine):
    """Both parts on both sides: equal outputs, times, operations."""
    gpu.main(["--size", "tiny", "--output", str(bare_machine / "record.json")])
    record = json.loads((bare_machine / "record.json").read_text())
    assert [point["part"] for point in record["points"]] == ["training", "editing"]
    assert record["versions"]["torch"] == torch.__version__
    for point in record["points"]:
        assert 0 < point["difference"] < 1e-4 and point["ratio"] > 0 and point["flop"] > 0
        assert point["torch"]["compile"] == "none"
        assert point["ours_utilisation"] is None  # unknown for a CPU
    training, editing = record["points"]
    assert training["ours_program_gib"] > 0 and editing["latents_difference"] < 1e-3
    # forward pass of one clip
    editing_forward = editing["flop"] / editing["sampler_steps"] / 3
    assert math.isclose(editing_forward, training["flop"] / 3, rel_tol=0.01)


def test_networks_that_differ_are_not_timed():
    clip = np.ones((1, 2, 4, 4, 4), np.float32)
    difference = gpu_parts.relative_difference(clip * (1 + 1e-5), clip, 1e-4)
    assert difference == pytest.approx(1e-5, rel=0.1)
    with pytest.raises(AssertionError, match="nothing was timed"):
        gpu_parts.relative_difference(clip * 1.01, clip, 1e-4)


def test_after_a_failed_mode_the_next_is_tried_and_both_are_recorded(monkeypatch):
    net = torch.nn.Linear(2, 2)

    def broken(net, mode, dynamic):
        return lambda x: (_ for _ in ()).throw(RuntimeError(f"no {mode} here\nand more"))

    monkeypatch.setattr(torch, "compile", broken)
    compiled, record = torch_side.compiled(net, "max-autotune", lambda net: net(torch.ones(2)))
    assert compiled is net and record["compile"] == "none"
    assert record["failed"] == {
        "max-autotune": "RuntimeError: no max-autotune here",
        "default": "RuntimeError: no default here",
    }


def test_a_mode_that_runs_out_of_memory_is_an_error(monkeypatch):
    def broken(net, mode, dynamic):
        return lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(torch.OutOfMemoryError):
        torch_side.compiled(torch.nn.Linear(2, 2), "max-autotune", lambda net: net(torch.ones(2)))


def test_a_part_that_fails_is_recorded_and_the_others_run(monkeypatch, tmp_path):
    def run(command, **options):
        if "training" in command:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nout of memory\n")
        result = {"device": "a GPU", "point": {"part": "editing", "pixels": 64}}
        return subprocess.CompletedProcess(command, 0, json.dumps(result), "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="failed: training at 64"):
        gpu.main(["--size", "tiny", "--output", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["device"] == "a GPU" and record["points"] == [
        {"part": "training", "pixels": 64, "failed": "out of memory"},
        {"part": "editing", "pixels": 64},
    ]


def test_the_first_matching_name_gives_the_peak():
    assert gpu.peak_of("NVIDIA H200") == 989.5e12
    assert gpu.peak_of("NVIDIA H100 PCIe") == 756.5e12
    assert gpu.peak_of("NVIDIA L40S") == 362e12
    assert gpu.peak_of("cpu") is None

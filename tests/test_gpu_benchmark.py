"""The GPU benchmark at its tiny size, without packages that a GPU machine may lack."""

import json
import math
import subprocess
from argparse import Namespace

import numpy as np
import pytest
import torch

from tests.benchmarks import gpu, gpu_parts, gpu_timing, torch_side
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
        assert point["torch_mode"] == "none" and point["torch"]["none"]["s"] == point["torch_s"]
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


def test_a_mode_that_fails_is_recorded_and_the_others_are_timed(monkeypatch):
    net = torch.nn.Linear(2, 2)

    def compiled(net, mode):
        if mode == "max-autotune":
            raise RuntimeError("no max-autotune here\nand more")
        return net

    def part(bench, args):
        return gpu_parts.Programs(lambda: 1, lambda net: net(torch.ones(2)), net, 8, dict)

    monkeypatch.setattr(torch_side, "compiled", compiled)
    monkeypatch.setitem(gpu_parts.PARTS, "editing", part)
    args = Namespace(part="editing", modes=("max-autotune", "default"), repeats=2, profile=False)
    *_, record = gpu_timing.measure(None, args)
    assert record["torch"]["max-autotune"] == {"failed": "RuntimeError: no max-autotune here"}
    assert record["torch_s"] == min(record["torch"][mode]["s"] for mode in ("none", "default"))


def test_a_part_that_fails_is_recorded_and_the_others_run(monkeypatch, tmp_path):
    class Process:
        def __init__(self, command, stdout, stderr, text):
            self.stdout, self.code = [], int("training" in command)
            if self.code:
                stderr.write("Traceback\nout of memory\n")
            for extra in ({}, {"ratio": 1.5}):
                point = {"part": "editing", "pixels": 64, **extra}
                self.stdout.append(json.dumps({"device": "a GPU", "point": point}))
            if self.code:
                self.stdout = []

        def wait(self):
            return self.code

    monkeypatch.setattr(subprocess, "Popen", Process)
    with pytest.raises(SystemExit, match="failed: training at 64"):
        gpu.main(["--size", "tiny", "--output", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["device"] == "a GPU" and record["points"] == [
        {"part": "training", "pixels": 64, "failed": "out of memory"},
        {"part": "editing", "pixels": 64, "ratio": 1.5},
    ]


def test_the_first_matching_name_gives_the_peak():
    assert gpu.peak_of("NVIDIA H200") == 989.5e12
    assert gpu.peak_of("NVIDIA H100 PCIe") == 756.5e12
    assert gpu.peak_of("NVIDIA L40S") == 362e12
    assert gpu.peak_of("cpu") is None

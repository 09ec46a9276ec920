"""How the processes of a distributed run find each other."""

import os

import jax
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import processes
from ivid2vid_jax.parallel.processes import DistributedConfig

CLUSTER_VARIABLES = (
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_TASKS",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_NUM_SLICES",
    "JAX_COORDINATOR_PORT",
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7"}, False),  # salloc without srun
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, False),  # the step has one task
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": ""}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1v-0,t1v-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "1"}, False),
    ],
)
def test_a_cluster_is_detected_by_its_environment(variables, expected):
    assert processes.in_cluster(variables) is expected


@pytest.fixture
def initialize_calls(monkeypatch):
    """The calls of jax.distributed.initialize, which is replaced; no cluster and no TPU."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **options: calls.append((args, options))
    )
    monkeypatch.setattr(processes, "has_tpu", lambda: False)
    for name in CLUSTER_VARIABLES:
        # Set first, so that monkeypatch also undoes what initialize_distributed sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


def test_flags_name_the_coordinator_with_port_8476_by_default(initialize_calls):
    options = {"cluster_detection_method": "deactivate"}
    processes.initialize_distributed(DistributedConfig("10.0.0.2", 4, 3))
    processes.initialize_distributed(DistributedConfig("10.0.0.2:9000", 2, 0))
    assert initialize_calls == [
        (("10.0.0.2:8476", 4, 3), options),
        (("10.0.0.2:9000", 2, 0), options),
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ("host", None, None),
        (None, 2, None),
        (None, None, 0),
        ("host", 2, None),
        ("host", None, 1),
        (None, 2, 1),
    ],
)
def test_incomplete_flags_are_refused(initialize_calls, flags):
    message = "coordinator, --distributed.processes and --distributed.process go together"
    with pytest.raises(UserError, match=message):
        processes.initialize_distributed(DistributedConfig(*flags))
    assert not initialize_calls


@pytest.mark.parametrize("process", [2, -1])
def test_a_process_out_of_range_is_refused(initialize_calls, process):
    with pytest.raises(UserError, match=f"--distributed.process {process} must be between 0 and 1"):
        processes.initialize_distributed(DistributedConfig("host", 2, process))
    assert not initialize_calls


def test_a_single_process_is_not_initialised_and_a_cluster_is(initialize_calls, monkeypatch):
    processes.initialize_distributed(DistributedConfig())
    assert not initialize_calls and "JAX_COORDINATOR_PORT" not in os.environ
    monkeypatch.setenv("SLURM_NTASKS", "2")
    processes.initialize_distributed(DistributedConfig(off=True))
    assert not initialize_calls
    processes.initialize_distributed(DistributedConfig())
    assert initialize_calls == [((), {})] and os.environ["JAX_COORDINATOR_PORT"] == "8476"
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    processes.initialize_distributed(DistributedConfig())
    assert len(initialize_calls) == 1


def test_a_cluster_that_cannot_be_joined_is_an_error_but_a_single_tpu_is_not(
    initialize_calls, monkeypatch
):
    def fail(*_, **__):
        raise ValueError("no coordinator")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(processes, "has_tpu", lambda: True)
    processes.initialize_distributed(DistributedConfig())
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    message = r"could not find each other \(no coordinator\); name them by --distributed"
    with pytest.raises(UserError, match=message):
        processes.initialize_distributed(DistributedConfig())

"""Connects the processes of a distributed run."""

import dataclasses
import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import jax

from ivid2vid_jax.errors import UserError

log = logging.getLogger(__name__)

# JAX's default is now 8482, which cloud firewalls usually block: processes would hang at start.
PORT = "8476"


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other.

    TPU pods and SLURM are detected; on other clusters give coordinator, processes and process.
    """

    # host:port of process 0; the port is 8476 by default.
    coordinator: str | None = None

    # Number of processes.
    processes: int | None = None

    # Index of this process, from 0.
    process: int | None = None

    # Disables the detection of a cluster.
    off: bool = False


def initialize_distributed(config: DistributedConfig) -> None:
    """Starts jax.distributed if the run has several processes.

    Must be called before any device is used. The cluster is given by the flags, or detected from
    the environment of a TPU pod or of SLURM (`srun`). A single process without flags does nothing.

    Raises:
        UserError: for incomplete flags, or a detected cluster that cannot be joined.
    """
    if config.off or jax.distributed.is_initialized():
        return
    if any(value is not None for value in (config.coordinator, config.processes, config.process)):
        initialize_by_flags(config.coordinator, config.processes, config.process)
    elif not (in_cluster(os.environ) or has_tpu()) or not initialize_by_detection():
        return
    log.info(
        "process %d of %d, with %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
    )


def initialize_by_flags(
    coordinator: str | None, processes: int | None, process: int | None
) -> None:
    """Joins the cluster named by the flags; raises UserError if they are incomplete."""
    if coordinator is None or processes is None or process is None:
        raise UserError(
            "--distributed.coordinator, --distributed.processes and --distributed.process "
            "go together"
        )
    if not 0 <= process < processes:
        raise UserError(f"--distributed.process {process} must be between 0 and {processes - 1}")
    address = coordinator if ":" in coordinator else f"{coordinator}:{PORT}"
    jax.distributed.initialize(address, processes, process, cluster_detection_method="deactivate")


def initialize_by_detection() -> bool:
    """Joins the cluster that JAX detects. Returns False for a TPU without one, as on Colab."""
    os.environ.setdefault("JAX_COORDINATOR_PORT", PORT)
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if in_cluster(os.environ):
            raise UserError(
                f"the processes of this cluster could not find each other ({error}); "
                "name them by --distributed.coordinator, --distributed.processes and "
                "--distributed.process"
            ) from error
        return False
    return True


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether this environment is that of a TPU pod's worker or of a SLURM step with >1 tasks."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1
    slices = environment.get("MEGASCALE_NUM_SLICES") or 1
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(slices) > 1 or int(tasks) > 1


def has_tpu() -> bool:
    """Whether this machine has a TPU.

    Checked by device files: asking JAX would start the devices before jax.distributed is up.
    """
    if importlib.util.find_spec("libtpu") is None:
        return False
    dev = Path("/dev")
    return any(dev.glob("accel*")) or any(dev.glob("vfio/[0-9]*"))

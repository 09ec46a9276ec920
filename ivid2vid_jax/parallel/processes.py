"""One run of many processes: how they find each other."""

import dataclasses
import glob
import importlib.util
import logging
import os

import jax

from ivid2vid_jax.utils.errors import UserError

log = logging.getLogger(__name__)

PORT = "8476"  # JAX's default moved to 8482, which the usual cloud firewall blocks: processes would hang at start


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of one run find each other. TPU pods and SLURM are recognised; other clusters name the coordinator."""

    coordinator: str | None = None  # host:port of process 0; port 8476 unless told
    processes: int | None = None
    process: int | None = None  # this one's number
    off: bool = False  # do not look for a cluster


def initialize_distributed(config: DistributedConfig) -> None:
    """Starts jax.distributed where there is more than one process; call it before any device is touched.

    By explicit flags; on TPU pods and under SLURM (`srun`) by their environment. A single process without flags is left alone.
    """
    explicit = (config.coordinator, config.processes, config.process)
    if config.off or jax.distributed.is_initialized():
        return
    if any(value is not None for value in explicit):
        if any(value is None for value in explicit):
            raise UserError(
                "--distributed.coordinator, --distributed.processes and --distributed.process go together"
            )
        if not 0 <= config.process < config.processes:
            raise UserError(
                f"--distributed.process {config.process} must be between 0 and {config.processes - 1}"
            )
        address = (
            config.coordinator if ":" in config.coordinator else f"{config.coordinator}:{PORT}"
        )
        jax.distributed.initialize(
            address, config.processes, config.process, cluster_detection_method="deactivate"
        )
    elif in_cluster(os.environ) or has_tpu():
        os.environ.setdefault("JAX_COORDINATOR_PORT", PORT)
        try:
            jax.distributed.initialize()
        except ValueError as error:  # a TPU without a cluster around it, as on Colab
            if in_cluster(os.environ):
                raise UserError(
                    f"the processes of this cluster could not find each other ({error}); name them by --distributed.*"
                ) from error
            return
    else:
        return
    log.info(
        "process %d of %d, %d devices here",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
    )


def in_cluster(environment) -> bool:
    """Whether the environment is that of a pod's worker, or of a SLURM step of several tasks."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1
    slices = environment.get("MEGASCALE_NUM_SLICES") or 1
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(slices) > 1 or int(tasks) > 1


def has_tpu() -> bool:
    """Whether this is a TPU VM; asked of the system, for a question to JAX would start the devices before the processes have met."""
    return importlib.util.find_spec("libtpu") is not None and any(
        glob.glob(path) for path in ("/dev/accel*", "/dev/vfio/[0-9]*")
    )

"""The TPU compiler's devices of one or more slices."""

from jax.experimental import topologies

from ivid2vid_jax.planning import chips


def topology_devices(name: str, slices: int = 1) -> list:
    """Those of `planning.chips`, in several slices of the same kind."""
    tpu = chips.TPUSlice(name)
    if slices == 1:
        return tpu.devices()
    chips.find_libtpu()
    with chips.silence_stderr():
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=name,
            chips_per_host_bounds=chips.CHIPS_PER_HOST,
            num_slices=slices,
        )
    return list(topology.devices)

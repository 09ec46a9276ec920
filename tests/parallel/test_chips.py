"""Peak figures of chips by the names that JAX gives them."""

from types import SimpleNamespace

import jax
import pytest

from ivid2vid_jax.parallel.chips import CHIPS, TPU_KINDS, peak_flops


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("Tesla T4", None),  # has no bfloat16
        ("gfx942", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_chip(kind, teraflops):
    peak = peak_flops(SimpleNamespace(device_kind=kind))
    assert peak == (teraflops and teraflops * 1e12)
    assert peak_flops(jax.devices("cpu")[0]) is None
    assert set(TPU_KINDS.values()) == set(CHIPS)

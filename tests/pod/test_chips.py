"""Tests of chip rates against the manufacturers' pages, in the units of those pages."""

import re
from types import SimpleNamespace

import pytest

from llm_jax.pod import chips
from llm_jax.sharding.hardware import chip

# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}: BF16 TFLOPs, HBM GiB, HBM GBps, bidirectional
# ICI GBps and DCN Gbps of a chip; and how many JAX devices a chip is.
TPUS = {
    ("TPU v4",): (275, 32, 1200, 600, 50, 1),
    ("TPU v5 lite", "TPU v5e"): (197, 16, 819, 400, 25, 1),
    ("TPU v5", "TPU v5p"): (459, 95, 2765, 1200, 50, 1),
    ("TPU v6 lite", "TPU v6e"): (918, 32, 1638, 800, 100, 1),
    ("TPU7x",): (2307, 192, 7380, 1200, 100, 2),
}
# NVIDIA's data sheets of the SXM boards: dense BF16 TFLOPs, GB, TB/s, NVLink GB/s both ways, and
# the network card of DGX (ConnectX-7; A100: ConnectX-6), Gb/s.
GPUS = {
    ("NVIDIA H100 80GB HBM3",): (989, 80, 3.35, 900, 400),
    ("NVIDIA H200", "NVIDIA H200 141GB HBM3e"): (989, 141, 4.8, 900, 400),
    ("NVIDIA B200",): (2250, 180, 8, 1800, 400),
    ("NVIDIA GB200",): (2500, 186, 8, 1800, 400),
    ("NVIDIA A100-SXM4-80GB",): (312, 80, 2.039, 600, 200),
}


@pytest.mark.parametrize(("kind", "page"), [(k, v) for ks, v in TPUS.items() for k in ks])
def test_tpus(kind, page):
    flops, gib, hbm, ici, dcn, devices = page
    device = SimpleNamespace(device_kind=kind)
    # Sent one way: half of what goes both ways.
    rates = (flops * 1e12, gib * 2**30, hbm * 1e9, ici / 2 * 1e9, dcn / 8 * 1e9)
    assert chip(device) == pytest.approx([rate / devices for rate in rates])


@pytest.mark.parametrize(("kind", "page"), [(k, v) for ks, v in GPUS.items() for k in ks])
def test_gpus(kind, page):
    flops, gb, hbm, nvlink, network = page
    device = SimpleNamespace(device_kind=kind)
    rates = [flops * 1e12, gb * 1e9, hbm * 1e12, nvlink / 2 * 1e9, network / 8 * 1e9]
    assert chip(device) == pytest.approx(rates)


def test_an_a100_is_known_by_its_data_sheet():
    """312 TFLOPS of BF16, dense; twice that only of sparse matrices."""
    assert chip(SimpleNamespace(device_kind="NVIDIA A100-SXM4-40GB")).flops == 312e12


# FP32 cores of a multiprocessor, and L2 cache in MB: white papers of Ampere, Hopper, Blackwell.
CORES = {"a100": (64, 40), "h100": (128, 50), "h200": (128, 50), "b200": (128, 126)}


@pytest.mark.parametrize("kind", CORES)
def test_the_compiler_is_told_what_a_white_paper_says(kind):
    told = dict(re.findall(r"(\w+): (\d+)", chips._target(chips.GPUS[kind])))
    assert (int(told["fpus_per_core"]), int(told["l2_cache_size"]) >> 20) == CORES[kind]


@pytest.mark.parametrize(
    ("topology", "rings"),
    [  # of cloud.google.com/tpu/docs: tori of whole cubes; of v5e and v6e sides as long as a pod
        ("v5p:4x4x4", (True, True, True)), ("v4:4x8x12", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)), ("tpu7x:2x2x1", (False, False, False)),
        ("v5e:16x16", (True, True, False)), ("v6e:8x16", (False, True, False)),
        ("v6e:8x8", (False, False, False)),
    ],
)  # fmt: skip
def test_sides_that_are_rings(topology, rings):
    assert chips.wraps(topology) == rings


def test_what_is_not_known_has_no_rates():
    device = SimpleNamespace(device_kind="cpu")
    assert chip(device) is None

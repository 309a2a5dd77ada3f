"""Peaks by the names that `torch.cuda.get_device_name` gives; none of these devices is here."""

from __future__ import annotations

import pytest

from distft.errors import UserError
from distft.plan.devices import BANDWIDTHS, FASTER, LINKS, MATMUL, MATMULS, MEMORY, PEAKS, device, peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A10", 125.0), ("NVIDIA A10G", 70.0), ("NVIDIA A100-SXM4-40GB", 312.0), ("A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0), ("NVIDIA A100-PCIE-40GB", 312.0), ("NVIDIA A800-SXM4-80GB", 312.0),
        ("NVIDIA A30", 165.0), ("NVIDIA A40", 149.7),
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H800", 989.4), ("NVIDIA H20", 148.0), ("NVIDIA H200", 989.4), ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4), ("NVIDIA GH200 144G HBM3e", 989.4), ("NVIDIA B200", 2250.0),
        ("NVIDIA B300 SXM6 AC", 2250.0), ("NVIDIA GB200", 2500.0), ("NVIDIA GB300", 2500.0),
        ("NVIDIA L4", 121.0), ("NVIDIA L40", 181.0), ("NVIDIA L40S", 362.0), ("NVIDIA L20", 119.5),
        ("NVIDIA RTX 6000 Ada Generation", 364.2), ("NVIDIA RTX A6000", 154.8), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71.0), ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI250X", 191.5), ("AMD Instinct MI250", 181.0), ("AMD Instinct MI210", 181.0),
        ("AMD Instinct MI300X", 1307.4), ("AMD Instinct MI300A", 980.6), ("AMD Instinct MI325X", 1307.4),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 312.0 * 3 / 7), ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", 312.0 / 7),
        ("NVIDIA A100 80GB PCIe MIG 7g.80gb", 312.0), ("NVIDIA A30 MIG 2g.12gb", 165.0 / 2),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", 989.4 / 7),
    ],
)  # fmt: skip
def test_the_peak_of_a_device(name: str, tera: float) -> None:
    assert peak_flops(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A1000", "Tesla T4", "Tesla V100-SXM2-32GB", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti", "Quadro RTX 6000", "NVIDIA RTX 6000D",
     "NVIDIA RTX PRO 6000 Blackwell", "NVIDIA A16", "NVIDIA H2000", "AMD Radeon RX 7900 XTX", ""],
)  # fmt: skip
def test_a_device_that_is_not_in_the_table_has_no_peak(name: str) -> None:
    assert peak_flops(name) is None


def test_every_device_is_found_by_its_own_name() -> None:
    assert {name: peak_flops(f"NVIDIA {name}") for name in PEAKS} == {n: tera * 1e12 for n, tera in PEAKS.items()}


def test_a_gpu_to_plan_for_is_found_by_its_name() -> None:
    found = device("h100-80gb")
    assert (found.name, found.flops, found.link) == ("H100-80GB", 989.4e12, 450e9)
    assert (found.bandwidth, found.matmul, found.between) == (3350e9, 0.803, 50e9)
    assert (device("A100-40GB").bandwidth, device("A100-80GB").bandwidth) == (1555e9, 2039e9)
    assert found.memory == 81_079 << 20
    assert device("L40S").name == "L40S-48GB"
    assert (device("L40S").link, device("L40S").matmul, device("L40S").between) == (25e9, MATMUL, 25e9)
    for odd in (" H100_nvl 94gb", "h100-NVL-94GB", "H100 NVL"):
        assert device(odd).name == "H100 NVL-94GB"
    for name, said in (
        ("A100", "several are called so; the possible values: A100-80GB, A100-40GB"),
        ("V100", "unknown"),
    ):
        with pytest.raises(UserError) as caught:
            device(name)
        assert str(caught.value).startswith(f"--gpu {name}: {said}")


def test_every_gpu_has_a_memory_and_a_peak() -> None:
    assert {name.rpartition("-")[0] for name in MEMORY} == set(PEAKS)
    assert set(LINKS) | set(MATMULS) | set(FASTER) <= set(PEAKS)
    assert set(BANDWIDTHS) == set(PEAKS) | {"A100-40GB"}
    for name, mib in MEMORY.items():
        assert 0.9 < mib / (int(name.rpartition("-")[2].removesuffix("GB")) * 1024) < 1.02, name

"""Which cores a rank computes on. The system's files and the GPU's address are made up, the affinity is real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from distft.process.numa import bind, cores

GPU = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
HERE = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _own_affinity() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def system(folder: Path, node: int | str, *cpulists: str) -> Path:
    device = folder / "bus/pci/devices/0000:3b:00.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text(f"{node}\n")
    for number, cpulist in enumerate(cpulists):
        (folder / f"devices/system/node/node{number}").mkdir(parents=True)
        (folder / f"devices/system/node/node{number}/cpulist").write_text(f"{cpulist}\n")
    return folder


@pytest.mark.skipif(len(HERE) < 2, reason="there is one core only")
def test_a_rank_keeps_to_the_cores_near_its_gpu(tmp_path: Path) -> None:
    sysfs = system(tmp_path, 1, f"{HERE[0]}", f"{HERE[1]},4000-4003")
    assert bind(GPU, 2, sysfs) == "on 1 cores of NUMA node 1, where GPU 0000:3b:00.0 is"
    assert os.sched_getaffinity(0) == {HERE[1]}


@pytest.mark.parametrize(
    ("node", "cpulists", "ranks"),
    [
        (-1, ("0", "1"), 1),  # the firmware does not tell
        ("x", ("0", "1"), 1),
        (7, ("0", "1"), 1),
        (1, (f"{HERE[0]}", "4000-4003"), 1),  # a scheduler has given cores of the other node only
        (0, (f"{HERE[0]}-{HERE[-1]}",), 1),  # there is one node
        (0, (f"{HERE[0]}-{HERE[-1]}", "4000"), 1),  # all cores of this process are near it already
        (0, (f"{HERE[0]}", "4000"), 8),  # four ranks would share one core
    ],
)
def test_nothing_is_changed_otherwise(tmp_path: Path, node: int | str, cpulists: tuple[str, ...], ranks: int) -> None:
    assert bind(GPU, ranks, system(tmp_path, node, *cpulists)) is None
    assert os.sched_getaffinity(0) == set(HERE)


def test_a_system_without_such_files(tmp_path: Path) -> None:
    assert bind(GPU, 1, tmp_path) is None


@pytest.mark.parametrize(
    ("text", "found"), [("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}), ("5", {5}), ("", set()), ("\n", set())]
)
def test_lists_of_cores_are_read(text: str, found: set[int]) -> None:
    assert cores(text) == found

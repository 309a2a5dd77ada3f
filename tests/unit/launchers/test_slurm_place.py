"""What a site profile says of a job's place: the GPU in the plan's words, measured rates, memory."""

from __future__ import annotations

from typing import Any

import pytest

from distft.plan.duration import LINKS
from launchers.slurm.place import place_of
from launchers.slurm.site import Site


def site(**values: Any) -> Site:
    return Site.model_validate(values)


@pytest.mark.parametrize(
    ("gpus", "name"),
    [
        ({"model": "A100-80GB"}, "A100-80GB"),
        ({"model": " a100_80gb"}, "A100-80GB"),
        ({"model": "h100 NVL-94gb"}, "H100 NVL-94GB"),
        ({"type": "a100", "model": "A100-40GB"}, "A100-40GB"),
        ({"type": "L40S"}, "L40S-48GB"),
        ({"type": "rtx_4090"}, "RTX 4090-24GB"),
        ({"type": "nvidia_a100-sxm4-80gb"}, "A100-80GB"),
        ({"type": "NVIDIA_H100_80GB_HBM3"}, "H100-80GB"),
        ({"type": "h200"}, "H200-141GB"),
    ],
)
def test_the_gpu_is_named(gpus: dict[str, Any], name: str) -> None:
    found = place_of(site(gpus=gpus))
    assert found.device is not None
    assert (found.device.name, found.is_known, found.unknown) == (name, True, [])


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ({}, 'does not name the GPU of its nodes; write it as gpus.model, such as "A100-80GB"'),
        ({"type": "a100"}, "may be one of A100-80GB, A100-40GB; write which as gpus.model"),
        ({"type": "H100"}, "may be one of H100-80GB, H100 NVL-94GB, H100 PCIe-80GB; write which"),
        ({"type": "v100"}, "is no GPU of the plan's table"),
        ({"type": "1g.10gb"}, "is no GPU of the plan's table"),
        ({"type": "a100_3g.20gb"}, "is no GPU of the plan's table"),
        ({"type": "nvidia_a100-sxm-64gb"}, "is no GPU of the plan's table"),
        ({"type": "gh200_480gb"}, "is no GPU of the plan's table"),
    ],
)
def test_a_gpu_that_is_not_known_is_said_to_be(gpus: dict[str, Any], said: str) -> None:
    found = place_of(site(gpus=gpus))
    assert not found.is_known
    assert found.device is not None  # not taken for a CPU
    [sentence] = found.unknown
    assert said in sentence


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("V100", "V100: unknown; the possible values: GB300-288GB"),
        ("a100", "a100: several are called so"),
        ("", "at least"),
    ],
)
def test_a_model_that_is_not_in_the_table_is_refused(model: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        site(gpus={"model": model})


@pytest.mark.parametrize("key", ["reached", "within_node", "between_nodes"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "0.4", True, None])
def test_a_rate_is_a_positive_number(key: str, value: object) -> None:
    if value is None:
        assert site(rates={key: 1}) != site()
        return
    with pytest.raises(ValueError, match=key):
        site(rates={key: value})


def test_measured_rates_go_before_those_of_the_table() -> None:
    table = place_of(site(gpus={"model": "H100-80GB"})).device
    found = place_of(site(gpus={"model": "H100-80GB"}, rates={"reached": 0.6, "between_nodes": 12})).device
    assert found is not None
    assert table is not None
    assert (found.reached, found.between, found.link) == (0.6, 12e9, table.link)
    own = place_of(site(gpus={"model": "H100-80GB"}, rates={"within_node": 200})).device
    assert own is not None
    assert (own.reached, own.between, own.link * LINKS) == (None, table.between, pytest.approx(200e9))


@pytest.mark.parametrize(
    ("text", "size"),
    [("64G", 64 << 30), ("64GB", 64 << 30), ("3000M", 3000 << 20), ("512", 512 << 20), ("1T", 1 << 40), ("0", None)],
)
def test_memory_in_slurms_forms(text: str, size: int | None) -> None:
    found = place_of(site(memory=text, nodes=3, ranks=4))
    assert (found.nodes, found.per_node, found.device, found.memory) == (3, 4, None, size)
    assert len(found.unknown) == (size is None)

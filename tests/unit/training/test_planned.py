"""The plan within a run: written down at the start if it can be, and quoted where memory runs out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distft.errors import UserError
from distft.plan import record
from distft.plan.devices import device, present
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.training import planned
from distft.training.out_of_memory import explained
from tests.models.published import LLAMA_8B
from tests.unit.recipes import recipe


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    return tmp_path


def wanted(base: Path, **sections: Any) -> Recipe:
    train = {"steps": 5, "global_batch": 64, "micro_batch": 4}
    data = {"train": "/d", "row_tokens": 4096}
    return recipe(
        **({"model": {"path": str(base)}, "train": train, "data": data, "adapter": {"type": "lora"}} | sections)
    )


def begin(made: Recipe, base: Path, rank: int = 0) -> list[str]:
    said: Any = Said()
    planned.write_down(made, base, base, Ranks(rank, rank, 8, torch.device("cpu"), None), said)  # type: ignore[arg-type]
    return list(said.lines)


def test_rank_0_writes_down_what_it_expects_of_the_ranks_that_there_are(base: Path) -> None:
    assert begin(wanted(base), base, rank=1) == []
    assert record.read(base) is None
    assert begin(wanted(base), base) == []
    found = record.read(base)
    assert found is not None
    assert (found.world, found.per_node, found.device) == (8, 4, None)
    assert found.peak.terms["activations"] > 0


OPEN = {"steps": 5, "global_batch": 64, "micro_batch": "auto"}
H100, SMALLER = ["NVIDIA H100 80GB HBM3", 80 << 30], ["NVIDIA A10G", 24 << 30]


def settled(
    run: RunDir, base: Path, monkeypatch: pytest.MonkeyPatch, devices: list[list[Any]], **sections: Any
) -> tuple[Recipe, str]:
    """What ranks with these devices settle on, and say."""
    said: Any = Said()
    ranks = Ranks(0, 0, len(devices), torch.device("cpu"), None)  # type: ignore[arg-type]
    monkeypatch.setattr(planned.distributed, "gather_text", lambda text: [json.dumps(one) for one in devices])
    monkeypatch.setattr(planned.distributed, "on_rank_0", lambda ranks, key, work: work())
    model = {"path": "/elsewhere", "activation_checkpointing": "auto"}
    made = wanted(base, **({"train": OPEN, "model": model} | sections))
    return planned.settle(run, made, base, ranks, said), " ".join(said.lines)


def test_the_smallest_device_decides_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(base / "run")
    run.path.mkdir()
    found, said = settled(run, base, monkeypatch, [H100] * 8)
    large = found
    assert (found.train.micro_rows, found.model.activation_checkpointing, found.model.path) == (2, "off", "/elsewhere")
    assert said.startswith("auto: train.micro_batch=2 model.activation_checkpointing=off, the fastest by the plan")
    assert " at most of 80.0 GiB, 10.0 GiB of which are to stay free" in said
    other = RunDir(base / "other")
    other.path.mkdir()
    found, said = settled(other, base, monkeypatch, [H100] * 7 + [SMALLER])
    assert found.model.activation_checkpointing == "full"
    assert " of 24.0 GiB" in said
    assert json.loads(other.batch.read_text())["room"] == 24 << 30
    found, said = settled(run, base, monkeypatch, [SMALLER] * 4)  # of another attempt
    assert found == large
    assert said.endswith("as this run has settled it (batch.json)")
    with pytest.raises(UserError, match="is not a multiple of micro_batch 2 x 3 ranks"):
        settled(run, base, monkeypatch, [H100] * 3)


def test_what_leaves_nothing_open_settles_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(base / "run")
    train = {"steps": 5, "global_batch": 64, "micro_batch": 4}
    found, said = settled(run, base, monkeypatch, [H100] * 8, train=train, model={"path": "/elsewhere"})
    assert (found.train.micro_rows, said, run.batch.exists()) == (4, "", False)


@pytest.mark.parametrize("content", ["{", '{"model_type": "unheard"}', '{"model_type": "llama", "hidden_size": 0}'])
def test_the_least_where_the_plan_says_nothing(base: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (base / "config.json").write_text(content)
    run = RunDir(base / "run")
    run.path.mkdir()
    found, said = settled(run, base, monkeypatch, [H100] * 8)
    assert (found.train.micro_rows, found.model.activation_checkpointing) == (1, "full")
    assert "so this is what takes least; set them if you know" in said


def test_a_new_model_is_planned_by_what_was_made(base: Path) -> None:
    init = {"architecture": "llama", "vocab_size": 300, "config": {"hidden_size": 8}}
    assert begin(wanted(base, model={"init": init}), base) == []
    found = record.read(base)
    assert found is not None
    assert found.peak.total > 10**10


@pytest.mark.parametrize("content", ["{", '{"model_type": "unheard"}', '{"model_type": "llama", "hidden_size": 0}'])
def test_a_start_does_not_fail_because_nothing_can_be_said(base: Path, content: str) -> None:
    (base / "config.json").write_text(content)
    [line] = begin(wanted(base), base)
    assert line.startswith("no prediction of memory was written down: ")
    assert not (base / record.FILE).exists()


def test_a_folder_that_cannot_be_written_is_no_error(base: Path) -> None:
    said: Any = Said()
    nowhere, ranks = base / "nowhere", Ranks(0, 0, 8, torch.device("cpu"), None)  # type: ignore[arg-type]
    planned.write_down(wanted(base), base, nowhere, ranks, said)
    assert len(said.lines) == 1


def test_out_of_memory_quotes_the_plan_and_only_what_the_run_can_go_on_with(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = device("A10-24GB")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(planned, "_device", lambda: small)
    with pytest.raises(UserError) as caught, explained(wanted(base)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
    said = str(caught.value)
    assert ": 2.50 GiB more were wanted, the plan expects 1" in said
    assert " GiB (loss; most of it activations, 9" in said
    assert "; what fits: " in said
    assert "engine.zero_stage=3" in said
    assert "quantize" not in said  # refused in a run that has begun
    assert "what helps" not in said
    assert "\n" not in said


def test_where_the_plan_says_that_it_fits_all_that_helps_is_listed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "_device", lambda: device("MI300X"))
    made = wanted(base, engine={"zero_stage": 3, "offload_optimizer": True, "offload_params": True})
    expected = r"the plan expects \d+\.\d GiB .*; what helps: more GPUs"
    with pytest.raises(UserError, match=expected), explained(made):
        raise MemoryError


def test_a_gpu_is_found_by_what_torch_calls_it() -> None:
    assert present("NVIDIA H100 80GB HBM3", 5).link == 450e9
    assert present("NVIDIA H100 80GB HBM3", 5).memory == 5
    assert present("Some GPU of tomorrow", 5).flops is None


def test_what_is_written_down_is_read_as_it_was(base: Path) -> None:
    gpu = present("NVIDIA H100 80GB HBM3", 80 << 30)
    found = record.quick(wanted(base, model={"path": str(base), "activation_checkpointing": True}), 8, 4, gpu, 1 << 40)
    assert found.times is not None
    assert found.useful < 1.0
    record.write(base, found)
    assert record.read(base) == found

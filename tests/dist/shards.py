"""Ranks that compare models made in shards, a stretch of each weight on each rank, with those that transformers loads.

    python -m tests.dist.shards digest|equal|resume FOLDER [--only NAME ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distft.model import base_digest, skeleton, whole_loading
from distft.model.weight_files import WeightFiles
from distft.process import distributed
from distft.process.distributed import Ranks
from tests.dist import scenario
from tests.dist.tasks import TASKS, config_of

FRESH = "fresh head"  # a classifier over a model for masked tokens, which has none
CASES = {  # name: (task, adapter, dtype)
    "decoder, full": ("dpo", "{type: none}", "bf16"),
    "decoder, LoRA": ("dpo", "{type: lora, r: 4}", "fp32"),
    "fresh head, full": ("single", "{type: none}", "fp32"),
    "fresh head, LoRA": ("single", "{type: lora, r: 4}", "bf16"),
    "several tasks": ("multi", "{type: none}", "fp32"),
    "encoder-decoder": ("translation", "{type: none}", "bf16"),
}


@contextmanager
def loaded_by_transformers() -> Iterator[None]:
    before = skeleton.build
    skeleton.build = lambda *_: None
    try:
        yield
    finally:
        skeleton.build = before


def buffers(session: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.double().numpy() for name, value in session.engine.module.named_buffers()}


def frozen(session: Any) -> dict[str, np.ndarray[Any, Any]]:
    """This rank's stretches of weights that are not trained; the last ones are padded with whatever was there."""
    found = {}
    for name, weight in session.engine.module.named_parameters():
        if not weight.requires_grad:
            own = max(0, min(weight.ds_tensor.numel(), weight.ds_numel - session.ranks.rank * weight.ds_tensor.numel()))
            found[name] = weight.ds_tensor[:own].double().numpy().copy()
    return found


@contextmanager
def no_gathered_weight_is_kept(session: Any) -> Iterator[None]:
    """By what autograd keeps for a backward pass. A view of a gathered weight there would keep it whole until then."""
    weights = [weight for weight in session.engine.module.parameters() if not weight.ds_persist]
    kept = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        gathered = {weight.untyped_storage().data_ptr() for weight in weights if weight.numel()}
        kept += not isinstance(tensor, torch.nn.Parameter) and tensor.untyped_storage().data_ptr() in gathered
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield
    assert kept == 0


class Reading:
    """What was asked of the files of base models meanwhile: elements of weights, by reading a stretch, and loads by
    transformers, which reads all."""

    def __init__(self) -> None:
        self.elements = self.loads = 0

    @contextmanager
    def watched(self) -> Iterator[Reading]:
        read_flat, by_transformers = WeightFiles.read_flat, whole_loading.load

        def reading(files: WeightFiles, name: str, offset: int, numel: int) -> torch.Tensor:
            self.elements += numel
            return read_flat(files, name, offset, numel)

        def loading(*arguments: Any) -> Any:
            self.loads += 1
            return by_transformers(*arguments)

        WeightFiles.read_flat, whole_loading.load = reading, loading  # type: ignore[method-assign]
        try:
            yield self
        finally:
            WeightFiles.read_flat, whole_loading.load = read_flat, by_transformers  # type: ignore[method-assign]


def base_for_heads(folder: Path, ranks: Ranks) -> Path:
    """A model for masked tokens, made by a run that learns them."""
    scenario.open_run(folder / "masked", config_of(folder, "masked", 0.0, ranks), ranks).close()
    return folder / "masked" / "base"


def equal(folder: Path, names: Sequence[str], ranks: Ranks) -> None:
    base = base_for_heads(folder, ranks)
    for name in names:
        task, adapter, dtype = CASES[name]
        config = config_of(folder, task, 0.1, ranks)
        overrides = [f"adapter={adapter}", "engine.zero_stage=3", f"engine.dtype={dtype}"]
        if name.startswith(FRESH):
            overrides += ["model.init=null", f"model.path={base}"]
        found = []
        for loading in ("new", "old"):
            run, reading = folder / f"{name}-{loading}", Reading()
            with loaded_by_transformers() if loading == "old" else nullcontext(), reading.watched():
                opened = scenario.open_run(run, config, ranks, *overrides)
            assert bool(reading.loads) == (loading == "old")
            start = {**opened.state(), **buffers(opened.session), **frozen(opened.session)}
            with no_gathered_weight_is_kept(opened.session):
                opened.advance(3)
            end = opened.state()
            opened.close()
            found.append((start, end, scenario.losses(run)))
        scenario.same(found[0][0], found[1][0])
        scenario.same(found[0][1], found[1][1])
        assert found[0][2] == found[1][2], name
        assert not any(np.isnan(value).any() for value in found[0][0].values()), name


def resume(folder: Path, ranks: Ranks) -> None:
    """Of full fine-tuning nothing is read again, of a frozen base its weights; what follows is the same bit for bit."""
    base, config = base_for_heads(folder, ranks), config_of(folder, "single", 0.1, ranks)
    for stage, adapter, dtype in (
        (0, "{type: none}", "fp32"),
        (2, "{type: none}", "bf16"),
        (3, "{type: none}", "bf16"),
        (3, "{type: partial, train: ['classifier.*', '*.layer.1.*']}", "fp32"),
        (3, "{type: lora, r: 4}", "fp32"),
    ):
        overrides = [f"adapter={adapter}", f"engine.zero_stage={stage}", f"engine.dtype={dtype}"]
        overrides += ["model.init=null", f"model.path={base}"]
        whole = scenario.open_run(folder / f"whole-{stage}-{adapter[:12]}", config, ranks, *overrides)
        whole.advance(4)
        state = whole.state()
        frozen_of_base = [  # what the base lacks is made anew
            getattr(weight, "ds_numel", weight.numel())
            for name, weight in whole.session.engine.module.named_parameters()
            if not weight.requires_grad and "classifier" not in name and "pooler" not in name
        ]
        whole.close()
        run, reading = folder / f"broken-{stage}-{adapter[:12]}", Reading()
        broken = scenario.open_run(run, config, ranks, *overrides)
        broken.advance(2)
        broken.save()
        broken.close()
        with reading.watched():
            broken = scenario.open_run(run, config, ranks, *overrides)
        assert distributed.sum_over_ranks([reading.elements, reading.loads]) == [sum(frozen_of_base), 0]
        broken.advance(2)
        scenario.same(state, broken.state())
        broken.close()


def digest(folder: Path, ranks: Ranks) -> None:
    """Each file is read by one rank, and all know the digest that one process finds alone."""
    model, read, checksum = folder / "model", list[str](), base_digest.checksum
    if ranks.first:
        model.mkdir()
        for number in range(5):
            (model / f"model-{number}.safetensors").write_bytes(bytes([number]) * (number + 1))
    distributed.barrier()

    def noted(path: Path) -> str:
        read.append(path.name)
        return checksum(path)

    base_digest.checksum = noted
    together = base_digest.digest(model, ranks)
    base_digest.checksum = checksum
    assert distributed.sum_over_ranks([len(read)]) == [5]
    assert 2 <= len(read) <= 3
    assert len((model / base_digest.MEMORY).read_text().splitlines()) > 5
    distributed.barrier()
    (model / base_digest.MEMORY).unlink(missing_ok=True)
    assert base_digest.digest(model) == together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["digest", "equal", "resume"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    options = parser.parse_args()
    ranks = scenario.join()
    if options.what == "digest":
        digest(options.folder, ranks)
    elif options.what == "resume":
        resume(options.folder, ranks)
    else:
        equal(options.folder, options.only, ranks)


if __name__ == "__main__":
    main()
    scenario.leave()

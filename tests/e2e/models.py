"""Models that a run leaves, loaded by the product and by plain PEFT and transformers; and commands in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from distft.checkpoint.best import choose_checkpoint
from distft.cli.table import app
from distft.exit_codes import run_command
from distft.model import export
from distft.model.context import RunContext
from distft.recipe.load import load_resolved
from distft.run.folder import RunDir
from tests.e2e.command import Ended

IDS = torch.arange(40).view(2, 20) * 7 % 290


def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *args: str | Path) -> Ended:
    """The command in this process, which has paid for the imports already."""
    monkeypatch.setattr(sys, "argv", ["distft", *map(str, args)])
    capfd.readouterr()
    code = run_command(app)
    captured = capfd.readouterr()
    return Ended(code, captured.out, captured.err)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS).logits
    return result.float()


def ours(run: Path) -> torch.Tensor:
    """Logits of the product's own model."""
    opened = RunDir(run)
    recipe = load_resolved(opened.config)
    stored = choose_checkpoint(opened, recipe)
    return logits(export.load_trained(RunContext(opened, recipe), stored))


def of_base(run: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(run / "base", dtype=dtype)


def with_adapter(run: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(of_base(run, torch.float32), adapter))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - no dict
    assert found
    return found

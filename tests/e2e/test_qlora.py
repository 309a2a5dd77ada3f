"""QLoRA with the real bitsandbytes, on the CPU: `make qlora-test` installs it beside the tested set and runs this."""

from __future__ import annotations

import pytest
import torch

from tests.e2e.command import Workplace, about, losses
from tests.e2e.models import tensors, with_adapter

pytestmark = [pytest.mark.qlora, pytest.mark.filterwarnings("ignore")]

QLORA = "adapter={type: lora, r: 4, alpha: 8, quantize: nf4}"
WIDE = ("model.init.config.hidden_size=128", "model.init.config.intermediate_size=256")


def test_qlora_learns_and_is_loaded_by_plain_peft(place: Workplace) -> None:
    """ZeRO 2 on two ranks, bf16 and fp32: about the loss of LoRA, an answer, an adapter for PEFT."""
    last = {}
    for name, *given in (
        ("lora", "adapter={type: lora, r: 4, alpha: 8}", "engine.dtype=fp32"),
        ("fp32", QLORA, "engine.dtype=fp32"),
        ("bf16", QLORA, "engine.dtype=bf16"),
    ):
        run = place.folder / f"qlora-{name}"
        ended = place.run("train", "recipe.yaml", *given, *WIDE, "--run-dir", run, "--nproc", "2")
        assert ended.code == 0, ended.err
        found = losses(run)
        assert found[60][0] < found[1][0] - 0.5
        last[name] = sum(found[step][0] for step in range(51, 61)) / 10
        assert all(tensor.numel() for tensor in tensors(run / "final").values())
        assert torch.isfinite(with_adapter(run, run / "final")).all()
    assert abs(last["fp32"] - last["lora"]) < 0.15
    assert abs(last["bf16"] - last["fp32"]) < 0.15
    run = place.folder / "qlora-bf16"
    answered = place.run("predict", run, "--prompt", "What of the lamp?", "--max-tokens", "4")
    assert answered.code == 0, answered.err
    assert about(run)["state"] == "done"


def test_qlora_survives_kills(place: Workplace) -> None:
    ended = place.run("verify-resume", "recipe.yaml", QLORA, *WIDE, "--nproc", "2", "--kills", "2", "--steps", "12")
    assert ended.code == 0, ended.out + ended.err

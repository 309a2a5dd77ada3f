"""Layers that are computed again: which they are, and that nothing shows in the losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distft.errors import UserError
from distft.model.recomputation import recompute
from distft.recipe.schema import Model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it


def made(dropout: float = 0.1) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        attention_dropout=dropout,
        use_cache=False,
    )
    return LlamaForCausalLM(settings).train()


def section(again: Any) -> Model:
    return Model.model_validate({"path": "/m", "activation_checkpointing": again})


def trained(again: Any, adapter: bool) -> tuple[list[float], int]:
    """Losses of three steps, and numbers that a forward pass has kept."""
    model = made()
    recompute(model, section(again))
    if adapter:
        import peft

        lora = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
        torch.manual_seed(1)
        model = peft.get_peft_model(model, lora).train()
    ids = torch.arange(48).reshape(2, 24)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 1e-2)
    losses, kept = [], 0
    for step in range(3):
        torch.manual_seed(step)
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=ids, labels=ids).loss
        kept = sum(sizes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, kept


@pytest.mark.parametrize("adapter", [False, True])
def test_losses_are_the_same_to_the_last_bit_with_dropout(adapter: bool) -> None:
    off, kept = trained("off", adapter)
    assert len(set(off)) == 3
    sizes = [kept]
    for again in ("selective", "full"):
        found, kept = trained(again, adapter)
        assert found == off
        sizes.append(kept)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.65 * sizes[0]


def flags(model: Any) -> list[bool]:
    return [layer.gradient_checkpointing for layer in model.model.layers]


@pytest.mark.parametrize(
    ("again", "expected"),
    [(True, [True] * 4), ("full", [True] * 4), (False, [False] * 4), ("off", [False] * 4), ("auto", [False] * 4)],
)
def test_all_or_none(again: Any, expected: list[bool]) -> None:
    recompute(model := made(), section(again))
    assert flags(model) == expected


def test_every_second_layer() -> None:
    recompute(model := made(), section("selective"))
    assert flags(model) == [True, False, True, False]


def test_a_class_that_cannot_is_told_in_a_sentence() -> None:
    model = made()
    model.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match=r"LlamaForCausalLM does not support .*; set it to off"):
        recompute(model, section("full"))


def test_an_older_transformers_is_told_in_a_sentence() -> None:
    class Older:
        def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None:
            self.settings = settings

    recompute(older := Older(), section("full"))
    assert older.settings == {"use_reentrant": False}
    with pytest.raises(UserError, match="this version of transformers"):
        recompute(Older(), section("selective"))

"""Which parameters are trained alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, Trainer

from distft.engine.optimizer import groups_of
from distft.recipe.schema import Train

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def decayed(model: torch.nn.Module, **settings: Any) -> set[str]:
    parameters = dict(model.named_parameters())
    train = Train.model_validate({"steps": 1, "weight_decay": 0.1, **settings})
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    groups = groups_of(parameters, shapes, lambda name: 2.0 if "classifier" in name else 1.0, train)
    names = {id(parameter): name for name, parameter in parameters.items()}
    of_all = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(of_all) == sorted(parameters)
    for group in groups:
        assert {2.0 if "classifier" in names[id(one)] else 1.0 for one in group["params"]} == {group["rate"]}
        assert group["weight_decay"] in (0.0, train.weight_decay)
    return {names[id(one)] for group in groups if group["weight_decay"] for one in group["params"]}


@pytest.mark.parametrize(
    "model",
    [
        BertForSequenceClassification(BertConfig(vocab_size=30, **SIZES)),
        LlamaForCausalLM(LlamaConfig(vocab_size=30, attention_bias=True, **SIZES)),
    ],
    ids=["bert", "llama"],
)
def test_biases_and_norms_do_not_decay(model: Any) -> None:
    """As in transformers' own Trainer."""
    theirs = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    assert decayed(model) == theirs < set(dict(model.named_parameters()))
    assert decayed(model, decay="all") == set(dict(model.named_parameters()))
    assert decayed(model, weight_decay=0.0) == set()


def test_without_decay_there_is_one_group_per_rate() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, **SIZES))
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    assert len(groups_of(parameters, shapes, lambda name: 1.0, Train(steps=1))) == 1

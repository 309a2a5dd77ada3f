"""Model types that the plan does not know are asked of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft.errors import UserError
from distft.plan import unknown
from distft.plan.families.catalogue import CATALOGUE
from distft.plan.meta import weights_of
from distft.plan.shapes import architecture_of
from distft.plan.trained import trained
from tests.models.making import CAUSAL, CLASSIFIES, made, planned, recipe_of, shapes, written
from tests.models.small_models import BOTH, DECODER, HEARS, T5, Sizes

GPTJ: Sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "rotary_dim": 4}
CASES: list[tuple[str, dict[str, Any], Sizes]] = [
    ("gptj", CAUSAL, GPTJ),
    ("gpt_bigcode", CAUSAL, {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}),
    ("glm4_moe", CAUSAL, DECODER | {"n_routed_experts": 4, "first_k_dense_replace": 1}),
    ("t5", CLASSIFIES, T5),
    ("bart", CLASSIFIES, BOTH),
    ("blenderbot", {"type": "seq2seq-lm"}, BOTH),
    ("wavlm", {"type": "ctc"}, HEARS),
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process would do, done in this one: it takes seconds to load torch."""

    def ask(asked: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(weights_of(asked), default=str))
        return found

    monkeypatch.setattr(unknown, "ask", ask)


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "task", "sizes"), CASES)
def test_weights_are_those_of_the_model(model_type: str, task: dict[str, Any], sizes: Sizes, tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, model_type, sizes), task)
    architecture = architecture_of(wanted)
    assert planned(architecture.named()) == shapes(made(tmp_path, wanted))
    assert not architecture.exact
    assert all(
        layers.count > 0 and layers.attention is not None for stack in architecture.stacks for layers in stack.layers
    )


@pytest.mark.usefixtures("here")
def test_it_is_read_as_a_known_model_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe_of(written(tmp_path, "llama", DECODER), CAUSAL, adapter={"type": "lora"})
    known = architecture_of(wanted)
    monkeypatch.delitem(CATALOGUE, "llama")
    found = architecture_of(wanted)
    assert found.stacks[0].layers[0].attention == known.stacks[0].layers[0].attention
    assert found.stacks[0].layers[0].feed_forward == known.stacks[0].layers[0].feed_forward
    assert found.stacks[0].layers[0].count == 3
    assert (found.vocabulary, found.tied, found.positions) == (known.vocabulary, known.tied, known.positions)
    assert (found.outputs, found.model_type) == (known.outputs, known.model_type)
    assert planned(trained(found, wanted).added) == planned(trained(known, wanted).added)
    assert {(one.name, one.kind, one.layout) for one in found.named()} == {
        (one.name, one.kind, one.layout) for one in known.named()
    }


@pytest.mark.long
def test_a_process_is_asked(tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, "gptj", GPTJ), CAUSAL)
    assert planned(architecture_of(wanted).named()) == shapes(made(tmp_path, wanted))


@pytest.mark.long
def test_what_transformers_cannot_build_is_refused_in_a_sentence(tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, "no_such_model", {}), CAUSAL)
    with pytest.raises(UserError, match=r"transformers cannot build a no_such_model model for task.type causal-lm \("):
        architecture_of(wanted)

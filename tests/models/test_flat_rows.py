"""Encoders that are given documents in one row, beside the same documents padded under transformers' own attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig

from distft.data.records import Document
from distft.model.document_attention import offer
from distft.recipe.tasks import QuestionAnswering
from distft.tasks.masked_lm import Masked
from distft.tasks.question_answering import Answering
from distft.tasks.sequence_classification import Classification
from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.padding import Inputs, pack_json
from distft.tasks.token_classification.crf import CRF
from distft.tasks.token_classification.task import Tagging

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

CPU, VOCABULARY, FILLER, WINDOW = torch.device("cpu"), 97, 1, 4
LENGTHS = (11, 3, 20, 3, 7, 1, 20, 11)
LABELS = ("O", "B-x", "I-x")
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": FILLER,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0),
}
DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}
DISTILBERT |= dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"), 0.0)
WINDOWED = {"sliding_window": WINDOW, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},  # whose positions are counted from behind the filler
    "xlm-roberta": {},
    "distilbert": DISTILBERT,  # without types
    "electra": {"embedding_size": 16},  # projects its embeddings
    "albert": {"embedding_size": 16, "classifier_dropout_prob": 0.0},  # one layer, again and again
    "modernbert": {**WINDOWED, "classifier_pooling": "mean"},  # windows that look both ways; means over a mask
}


def model_of(architecture: str, auto: str, attention: str) -> Any:
    offer()
    torch.manual_seed(0)
    labels = {} if auto.endswith("Answering") else {"num_labels": len(LABELS)}
    config = AutoConfig.for_model(architecture, **{**SIZES, **FAMILIES.get(architecture, {}), **labels})
    made = getattr(transformers, auto).from_config(config, dtype=torch.float32, attn_implementation=attention)
    for parameter in made.parameters():  # far from zero, so that every token matters to every other
        parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    if auto.endswith("TokenClassification"):
        made.crf = CRF(len(LABELS))
    return made.train()


def blank(*texts: Any, **rest: Any) -> dict[str, list[int]]:
    """A tokenizer that finds nothing."""
    return {"input_ids": [], "token_type_ids": []}


def document(index: int, size: int) -> Document:
    draw = np.random.default_rng(index)
    tokens = draw.integers(2, VOCABULARY, size=size).astype(np.int32)
    tokens[size // 2 : size // 2 + 1] = FILLER if size == 20 else tokens[size // 2]  # RoBERTa counts past it
    columns = {
        "tokens": tokens,
        "types": (np.arange(size) > size // 2).astype(np.uint8),
        "label": np.array([index % 3], np.int32),
        "special": np.arange(size) == 0,
        "mask": np.array([5, VOCABULARY], np.int32),
        "span": np.array([0, size - 1], np.int32),
        "about": pack_json(None),
        "starts": np.arange(size).astype(np.int32),
        "tags": draw.integers(3, size=size).astype(np.int32),
        "edges": np.ones(2, bool),
        "words": pack_json([]),
    }
    return Document(columns, size, size, draw=index)


Make = Callable[[Inputs], Any]
TASKS: dict[str, tuple[str, Make]] = {
    "classes": ("AutoModelForSequenceClassification", lambda inputs: Classification("single", LABELS, inputs)),
    "tags": ("AutoModelForTokenClassification", lambda inputs: Tagging(LABELS, False, inputs)),
    "crf": ("AutoModelForTokenClassification", lambda inputs: Tagging(LABELS, True, inputs)),
    "spans": (
        "AutoModelForQuestionAnswering",
        lambda inputs: Answering(QuestionAnswering(type="question-answering"), inputs),
    ),
    "masked": ("AutoModelForMaskedLM", lambda inputs: Masked(0.3, inputs)),
}
ROWS = [[document(index, size)] for index, size in enumerate(LENGTHS)]


def learned(
    architecture: str, name: str, attention: str, again: bool = False, leaves_out: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """The sum of the losses of a micro-batch, and its gradients."""
    auto, make = TASKS[name]
    model = model_of(architecture, auto, attention)
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    task = make(Inputs(model, blank))
    task.inputs.leaves_out = leaves_out
    batch = task.collate(ROWS, CPU)
    padded = getattr(batch, "padded", batch)
    assert (padded.flat is not None) == (attention == VARLEN)
    assert task.inputs(padded)["input_ids"].shape == ((1, sum(LENGTHS)) if padded.flat else (len(LENGTHS), 20))
    [loss] = task.loss(model, batch).values()
    loss.backward()
    return loss.item(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_losses_and_gradients_are_those_of_padded_documents(architecture: str, name: str) -> None:
    compare(learned(architecture, name, VARLEN), learned(architecture, name, "sdpa"))


def compare(ours: Any, theirs: Any) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    for key, gradient in ours[1].items():
        assert float((gradient - theirs[1][key]).abs().max()) <= 1e-5 * scale, key


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "electra"])
def test_what_no_head_looks_at_is_left_out_of_the_last_layer(architecture: str, again: bool) -> None:
    widths: list[int] = []

    def note(module: Any, given: Any, output: torch.Tensor) -> None:
        if type(module).__name__.endswith("Intermediate"):
            widths.append(output.shape[1])

    with torch.nn.modules.module.register_module_forward_hook(note):
        ours = learned(architecture, "classes", VARLEN, again, leaves_out=True)
    assert widths[: SIZES["num_hidden_layers"]] == [sum(LENGTHS), sum(LENGTHS), len(LENGTHS)]
    compare(ours, learned(architecture, "classes", "sdpa"))


def test_recomputed_activations_give_the_same_gradients() -> None:
    (loss, gradients), (other, others) = learned("bert", "tags", VARLEN), learned("bert", "tags", VARLEN, again=True)
    assert loss == other
    assert all(torch.equal(gradient, others[key]) for key, gradient in gradients.items())


def test_a_micro_batch_without_documents_keeps_the_graph() -> None:
    auto, make = TASKS["classes"]
    model = model_of("bert", auto, VARLEN)
    task = make(Inputs(model, blank))
    [loss] = task.loss(model, task.collate([[], []], CPU)).values()
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["mpnet", "deberta-v2", "llama"])
def test_models_that_attend_in_another_way_get_padded_rows(architecture: str) -> None:
    """With positions in their scores, or looking back alone."""
    model = model_of(architecture, "AutoModelForSequenceClassification", "eager")
    model.config._attn_implementation = VARLEN
    inputs = Inputs(model, blank)
    assert not inputs.flat
    assert inputs(inputs.padded(ROWS, CPU))["input_ids"].shape == (len(LENGTHS), 20)

"""Models of transformers that have shapes and no weights, what they are made of, and a step of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from distft.model.adapters import leave_out_routers
from distft.model.document_attention import offer
from distft.plan.activations import Activations, activations
from distft.plan.architecture import Architecture, Attention, FeedForward, Kind, Layers, Stack, Weight
from distft.plan.loss import Batch, Computing
from distft.plan.operations import Implementation, Numbers, Update
from distft.tasks.causal_lm import TOKENS, Causal
from distft.tasks.masked_lm import Masked, MaskedBatch
from distft.tasks.shared.boundaries import VARLEN, Boundaries
from distft.tasks.shared.causal_rows import CausalBatch
from distft.tasks.shared.chunked_head import ChunkedHead, Scored
from distft.tasks.shared.encoder_decoder import EncoderDecoder, Wanted, WritingBatch
from distft.tasks.shared.flat_pairs import FlatPair, can_be_given_pairs
from distft.tasks.shared.flat_rows import FlatRow
from distft.tasks.shared.padding import Inputs, Padded
from tests.models.live_bytes import counted, fake, without_memory


@dataclass(frozen=True)
class Made:
    """A configuration, and what its weights do not say of each list of layers, by its path."""

    auto_class: str
    config: Any
    attention: dict[str, Attention]
    feed_forward: dict[str, FeedForward]
    dropout: float = 0.0


@dataclass(frozen=True)
class How:
    """How a model is trained: `rank` of an adapter on all of its layers' matrices, 0: whole. `exact`: in fp32."""

    rank: int = 0
    adapter_dropout: float = 0.0
    dora: bool = False
    exact: bool = False
    checkpointing: int = 0
    attention: Implementation = "sdpa"
    dtype: torch.dtype = torch.bfloat16
    packed: bool = False
    chunk: int = 0

    def update(self, name: str, weight: Weight) -> Update:
        if not self.rank:
            return Update(whole=True)
        router = name.endswith(("mlp.gate.weight", "router.weight"))
        if weight.kind != "matrix" or router or ("layer" not in name and ".h." not in name and "block" not in name):
            return Update()
        dropout = 0.0 if weight.experts else self.adapter_dropout
        return Update(rank=self.rank, dropout=dropout, magnitude=self.dora, exact=self.exact)


def built(made: Made, how: How) -> Any:
    """On the meta device, with what the recipe does to it."""
    import transformers

    offer()
    made.config._attn_implementation = how.attention
    with torch.device("meta"):
        model = getattr(transformers, made.auto_class).from_config(made.config, dtype=how.dtype).train()
    if how.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=how.checkpointing)
    return model


def adapted(model: Any, how: How) -> Any:
    import peft

    if not how.rank:
        return model
    settings = peft.LoraConfig(
        r=how.rank,
        lora_dropout=how.adapter_dropout,
        target_modules="all-linear",
        task_type=None,
        use_dora=how.dora,
    )
    leave_out_routers(settings, model)
    return peft.get_peft_model(model, settings, autocast_adapter_dtype=how.exact)


def architecture_of(model: Any, made: Made) -> Architecture:
    """All layers of a list are taken to be like its last."""
    names = dict(model.named_parameters())
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}

    def weights(prefix: str, without: str | None = None, *, whole: bool = False) -> tuple[Weight, ...]:
        found = []
        for name, tensor in names.items():
            if name.startswith(prefix) and not (without and name.startswith(without)):
                kind: Kind = "embedding" if id(tensor) in looked_up else "vector" if tensor.dim() < 2 else "matrix"
                if tensor.dim() == 3 and "conv" in name:
                    kind = "convolution"
                short = name if whole else name.removeprefix(prefix)
                found.append(Weight(short, tuple(tensor.shape), kind, experts=".experts." in name))
        return tuple(found)

    stacks, roots = [], []
    for path, attention in made.attention.items():
        parts = model.get_submodule(path)
        root = path.rpartition(".")[0]
        own = weights(f"{path}.{len(parts) - 1}.")
        norms = sum("norm" in one.name.lower() and one.name.endswith("weight") for one in own)
        beside = getattr(model.config, "use_parallel_residual", False)
        layers = Layers(len(parts), path, own, attention, made.feed_forward[path], norms, made.dropout, parallel=beside)
        role: Any = "only" if len(made.attention) == 1 else "encoder" if "encoder" in path else "decoder"
        hidden = getattr(model.config, "hidden_size", None) or model.config.d_model
        prefix = f"{root}." if len(made.attention) > 1 else f"{root.split('.')[0]}."
        stacks.append(Stack(role, hidden, (layers,), weights(prefix, f"{path}.", whole=True)))
        roots.append(prefix)
    head = tuple(one for one in weights("", whole=True) if not one.name.startswith(tuple(roots)))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return Architecture(model.config.model_type, tuple(stacks), head, model.config.vocab_size, tied)


def predicted(model: Any, made: Made, how: How, batch: Batch, *, gathered: bool = True) -> Activations:
    numbers = Numbers(how.dtype.itemsize, "cpu")
    computing = Computing(numbers, how.attention, how.update, how.checkpointing, gathered, how.chunk)
    return activations(architecture_of(model, made), batch, computing)


def of_causal_lm(made: Made, how: How, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Peak bytes of a step of causal-lm, in which each token but a row's first is to be told: predicted, counted."""
    model = built(made, how)
    by_document = how.attention == VARLEN
    task = Causal(model.forward, flatten=by_document)
    kept = tokens - 1 if "logits_to_keep" in _arguments(model) else tokens
    places, targets = rows * kept, rows * (tokens - 1)
    batch = Batch(rows, tokens, logits=places, targets=targets, mask=how.packed)
    expected = predicted(model, made, how, batch).peak
    # the only look at values that the forward pass takes, which fake tensors have not
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices",
        lambda positions: torch.zeros_like(positions) if how.packed else None,
    )
    model = adapted(model, how)
    take_head(task, model, how)
    with fake():
        without_memory(model)
        shape = (1, rows * tokens) if by_document else (rows, tokens)
        ids, at = torch.zeros(shape, dtype=torch.long), torch.zeros(targets, dtype=torch.long)
        given = CausalBatch(
            ids,
            torch.zeros_like(ids),
            torch.zeros(rows * kept if by_document else kept, dtype=torch.long),
            at,
            at.clone(),
            at.clone(),
            torch.zeros(rows * tokens, dtype=torch.bool),
            0,
            (),
            Boundaries.of(uneven(rows, tokens)) if by_document else None,
        )
        found = counted(model, lambda: task.loss(model, given)[TOKENS], batch=given)
    return expected, max(most for most, _ in found.values())


def uneven(rows: int, tokens: int) -> list[int]:
    """Sizes of so many documents. Those of equal size are computed at once, which takes a copy less than is planned."""
    return [tokens + (0 if row == rows - 1 and rows % 2 else 1 - row % 2 * 2) for row in range(rows)]


def _arguments(model: Any) -> Any:
    import inspect

    return inspect.signature(model.forward).parameters


def of_masked_lm(made: Made, how: How, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The same of a step of masked-lm, in which every eighth token is hidden and no row is padded."""
    targets = rows * tokens // 8
    expected = predicted(model := built(made, how), made, how, Batch(rows, tokens, rows * tokens, targets)).peak
    _without_padding(monkeypatch)
    task = Masked(0.125, Inputs(model, _Tokenizer()))
    model = adapted(model, how)
    take_head(task, model, how)
    with fake():
        without_memory(model)
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        at = torch.zeros(targets, dtype=torch.long)
        told = flat_row(rows, tokens) if how.attention == VARLEN else None
        padded = Padded(ids, torch.ones_like(ids), torch.zeros_like(ids), (), told)
        given = MaskedBatch(padded, at, at.clone(), np.zeros(0))
        found = counted(model, lambda: task.loss(model, given)[TOKENS], batch=padded)
    return expected, max(most for most, _ in found.values())


def flat_row(rows: int, tokens: int) -> FlatRow:
    return FlatRow(torch.zeros(rows * tokens, dtype=torch.long), Boundaries.of([tokens] * rows), (rows, tokens))


def of_seq2seq(
    made: Made, how: How, rows: int, read: int, written: int, monkeypatch: pytest.MonkeyPatch, mels: int = 0
) -> tuple[int, int]:
    """The same of a step of seq2seq-lm or speech-seq2seq, without padding.

    Args:
        mels: of sound, of which the encoder's layers see half as many places as it has frames.
    """
    model, places = built(made, how), rows * written
    batch = Batch(rows, read, places, places, written)
    expected = predicted(model, made, how, batch, gathered=False).peak
    _without_padding(monkeypatch)
    task = EncoderDecoder(None, None, [0], 0, None, None)  # type: ignore[arg-type] - its loss needs none of them
    model = adapted(model, how)
    with fake():
        without_memory(model)
        ids = torch.zeros(rows, written, dtype=torch.long)
        if mels:
            inputs = {"input_features": torch.zeros(rows, mels, 2 * read)}
        else:
            source = torch.zeros(rows, read, dtype=torch.long)
            inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
        at = torch.arange(places)
        take_head(task, model, how)
        given = WritingBatch(inputs, ids, ids.clone(), 0, (), Wanted(at, at, at.clone()))
        if how.attention == VARLEN:
            assert can_be_given_pairs(model)
            given = replace(given, flat=FlatPair(flat_row(rows, read), flat_row(rows, written)))
        found = counted(model, lambda: task.loss(model, given)[TOKENS], batch=given)
    return expected, max(most for most, _ in found.values())


def take_head(task: Scored, model: Any, how: How) -> None:
    """Without the trial, which looks at values."""
    if how.chunk:
        base = model.get_base_model() if how.rank else model
        task.head = ChunkedHead(base, base.get_output_embeddings(), how.chunk)


class _Tokenizer:
    pad_token_id = 0

    def __call__(self, *texts: str, **settings: object) -> dict[str, list[int]]:
        return {"input_ids": [1, 1], "token_type_ids": [0, 1]}


def _without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors cannot be asked whether a mask hides anything."""
    name = "transformers.masking_utils._ignore_bidirectional_mask_sdpa"
    monkeypatch.setattr(name, lambda *args, **kwargs: True)

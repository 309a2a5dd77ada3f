"""A step of a recipe on tensors without memory: what the plan says of its activations, and what is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
import transformers.masking_utils

from distft.data.records import Document
from distft.model.adapters import attach
from distft.model.attention import choose
from distft.model.base_model import DTYPES
from distft.model.recomputation import recompute
from distft.plan.estimate import Estimator
from distft.plan.microbatch import ONLY_EAGER, given, shape_of
from distft.plan.shapes import architecture_of
from distft.recipe import tasks as sections
from distft.recipe.schema import Recipe
from distft.tasks.causal_lm import Causal, CausalBatch
from distft.tasks.ctc import CTCBatch, CTCTask
from distft.tasks.dpo import Pairs, Preference
from distft.tasks.masked_lm import Masked
from distft.tasks.multi_task import Multi, join_models, whole
from distft.tasks.question_answering import Answering
from distft.tasks.registry import specs_of
from distft.tasks.sequence_classification import Classification
from distft.tasks.shared.encoder_decoder import EncoderDecoder, Wanted, WritingBatch
from distft.tasks.shared.padding import Inputs
from distft.tasks.token_classification.task import Tagging
from tests.models.live_bytes import counted, fake, without_memory
from tests.models.making import recipe_of, written
from tests.models.small_models import Sizes

CPU = torch.device("cpu")
LABELS = ["O", "B-x", "I-x"]
SAMPLES = 320  # of 20 milliseconds of speech
STEP = ("loss", "a layer", "first layer", "sound")  # moments with activations


@dataclass(frozen=True)
class Trial:
    """A model, a task, and the sizes of a micro-batch: `tokens` of a row, or milliseconds of speech.

    Attributes:
        adapter: of the recipe.
        model: keys of the recipe's section.
    """

    model_type: str
    sizes: Sizes
    task: dict[str, Any]
    rows: int = 2
    tokens: int = 320
    adapter: dict[str, Any] | None = None
    model: tuple[tuple[str, Any], ...] = ()
    dtype: str = "bf16"

    def recipe(self, folder: Path) -> Recipe:
        more: dict[str, Any] = {"adapter": self.adapter} if self.adapter else {}
        task = {key: value for key, value in self.task.items() if key != "fields"}
        found = recipe_of(
            written(folder, self.model_type, self.sizes),
            task,
            train={"steps": 5, "micro_batch": self.rows, "global_batch": self.rows},
            engine={"dtype": self.dtype, "loss_chunk": 0},
            **more,
        )
        data, model = {"row_tokens": self.tokens}, dict(self.model)
        if task["type"] == "causal-lm":
            data["packing"] = False
        if self.model_type not in ONLY_EAGER:
            model = {"attention": "sdpa"} | model  # auto would be attention by document, which has tests of its own
        return found.model_copy(
            update={
                "data": found.data.model_copy(update=data),
                "model": found.model.model_copy(update=model),
            }
        )


def predicted(recipe: Recipe) -> int:
    moments = Estimator(1, None).predict(recipe, 1).moments
    return max(moment.terms.get("activations", 0) for moment in moments if moment.name in STEP)


def step(trial: Trial, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Peak bytes of activations: predicted, counted."""
    recipe = trial.recipe(folder)
    expected = predicted(recipe)
    without_values(monkeypatch, recipe)
    model, tasks = made(folder, recipe), {}
    for name, part in ((part.name, part.task) for part in recipe.parts()):
        inner = model if name is None else model.parts[name]
        tasks[name] = task_of(part, inner)
    learned = tasks[None] if None in tasks else Multi(cast(Any, tasks))
    with fake():
        without_memory(model)
        batch = batch_of(recipe, learned, model)
        held = SimpleNamespace(**tensors(batch))
        found = counted(model, lambda: torch.stack([*learned.loss(model, batch).values()]).sum(), batch=held)
    return expected, max(most for most, _ in found.values())


def made(folder: Path, recipe: Recipe) -> Any:
    """The model of a recipe with its adapter, without memory."""
    specs = specs_of(recipe)

    def make(spec: Any) -> Any:
        settings = transformers.AutoConfig.from_pretrained(folder, **spec.head(LABELS))
        loaded = getattr(transformers, spec.auto_class).from_config(
            settings,
            dtype=DTYPES[recipe.engine.dtype],
            attn_implementation=choose(folder, recipe, spec, by_document=False),
        )
        spec.extend(loaded, LABELS)
        return loaded

    with torch.device("meta"):
        model = join_models({name: make(spec.model) for name, spec in specs.items()})
        model.to(DTYPES[recipe.engine.dtype]).train()
        recompute(model, recipe.model)
    adapted = attach(model, recipe.adapter, whole(specs), None, 10)
    return adapted.to(DTYPES[recipe.engine.dtype])  # as the engine does: AdaLoRA's number of ranks is fp32 before


def task_of(settings: Any, model: Any) -> Any:
    if isinstance(settings, sections.CausalLM):
        return Causal(model.forward, flatten=False)
    if isinstance(settings, sections.DPO):
        fresh = any("lora" in name for name, _ in model.named_parameters())
        reference = None if fresh else SimpleNamespace(logps=lambda pairs: torch.zeros(len(pairs), 2))
        forward = model.get_base_model().forward if fresh else model.forward
        return Preference(0.1, Causal(forward, False), cast(Any, reference))
    if isinstance(settings, sections.CTC):
        heard = getattr(model, "get_base_model", lambda: model)()
        processor = SimpleNamespace(
            tokenizer=SimpleNamespace(pad_token_id=0, unk_token_id=1, bos_token_id=2, eos_token_id=3),
            feature_extractor=SimpleNamespace(
                do_normalize=True, return_attention_mask=heard.config.feat_extract_norm == "layer"
            ),
        )
        return CTCTask(processor, heard._get_feat_extract_output_lengths, heard.config)
    if isinstance(settings, sections.Seq2SeqLM | sections.SpeechSeq2Seq):
        none: Any = None  # of what its loss does not need
        return EncoderDecoder(none, none, [0], 0, none, none)
    inputs = Inputs(getattr(model, "get_base_model", lambda: model)(), Tokenizer())
    if isinstance(settings, sections.MaskedLM):
        return Masked(settings.mask, inputs)
    if isinstance(settings, sections.QuestionAnswering):
        return Answering(settings, inputs)
    if isinstance(settings, sections.SequenceClassification):
        return Classification(settings.kind, tuple(LABELS), inputs)
    return Tagging(tuple(LABELS), settings.crf, inputs)


class Tokenizer:
    pad_token_id = 0

    def __call__(self, *texts: str, **settings: object) -> dict[str, list[int]]:
        return {"input_ids": [1, 1], "token_type_ids": [0, 1]}


def batch_of(recipe: Recipe, task: Any, model: Any) -> Any:
    """As full as it can be."""
    rows, tokens = recipe.train.micro_batch, recipe.data.row_tokens
    if isinstance(task, Causal):
        return causal_batch(rows, tokens, task)
    if isinstance(task, Preference):
        documents = [Document({}, tokens, 1) for _ in range(rows)]
        sequences = causal_batch(2 * rows, tokens, task.causal)
        each = [Document({}, tokens, tokens - 1) for _ in range(2 * rows)]
        mask = torch.ones(2 * rows, tokens, dtype=torch.long)
        return Pairs(replace(sequences, documents=each), mask, documents)
    if isinstance(task, CTCTask):
        samples = tokens // 20 * SAMPLES + 80
        frames = [int(task._frames(torch.tensor(samples)))] * rows
        inputs = {"input_values": torch.zeros(rows, samples)}
        if task._masks:
            inputs["attention_mask"] = torch.ones(rows, samples, dtype=torch.long)
        spelt = torch.zeros(rows * 5, dtype=torch.long)
        documents = [Document({}, tokens) for _ in range(rows)]
        frames, lengths = cast(Any, (frames, [5] * rows))  # of fake tensors torch would ask the values
        return CTCBatch(inputs, frames, spelt, lengths, [True] * rows, documents)
    if isinstance(task, EncoderDecoder):
        return writing_batch(recipe, model)
    parts = task.parts if isinstance(task, Multi) else {None: task}
    largest = list(parts)[-1]
    document = replace(encoded(tokens), part=largest)
    return task.collate([[document] for _ in range(rows)], CPU)


def causal_batch(rows: int, tokens: int, task: Causal) -> CausalBatch:
    kept = tokens - 1 if task._takes_keep else tokens
    ids, at = torch.zeros(rows, tokens, dtype=torch.long), torch.zeros(rows * (tokens - 1), dtype=torch.long)
    keep, real = torch.zeros(kept, dtype=torch.long), torch.zeros(rows * tokens, dtype=torch.bool)
    return CausalBatch(ids, ids.clone(), keep, at, at.clone(), at.clone(), real, 0, ())


def writing_batch(recipe: Recipe, model: Any) -> WritingBatch:
    rows, tokens = recipe.train.micro_batch, recipe.data.row_tokens
    config = model.config
    if isinstance(recipe.task, sections.SpeechSeq2Seq):
        frames = 2 * config.max_source_positions
        inputs = {"input_features": torch.zeros(rows, config.num_mel_bins, frames)}
        tokens = config.max_target_positions
    else:
        source = torch.zeros(rows, tokens, dtype=torch.long)
        inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    at = torch.arange(rows * tokens)
    return WritingBatch(inputs, ids, ids.clone(), 0, (), Wanted(at, at, at.clone()))


def encoded(tokens: int) -> Document:
    """One that each task of a padded batch can read: a word for each token, of which the first is special."""
    columns: dict[str, Any] = {
        "tokens": np.ones(tokens, np.int32),
        "types": np.zeros(tokens, np.uint8),
        "special": np.zeros(tokens, bool),
        "mask": np.array([3, 90], np.int32),
        "span": np.array([1, 2], np.int32),
        "label": np.array([1], np.int32),
        "starts": np.arange(tokens, dtype=np.int32),
        "tags": np.zeros(tokens, np.int32),
        "edges": np.ones(2, bool),
    }
    return Document(columns, tokens, tokens)


class WrittenOut(torch.autograd.Function):
    """CTC's loss as the CPU has it: fake tensors have none."""

    @staticmethod
    def forward(ctx: Any, chances: torch.Tensor, states: int) -> torch.Tensor:
        places, rows, _ = chances.shape
        ctx.save_for_backward(chances, torch.empty(rows, places, states))
        return torch.empty(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        chances, forward = ctx.saved_tensors
        backward, gradient = torch.empty_like(forward), torch.empty_like(chances)
        return (gradient, None) if backward.numel() else None


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    """All that a batch holds."""
    found: dict[str, torch.Tensor] = {}

    def look(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[f"t{len(found)}"] = value
        elif isinstance(value, Mapping):
            for inner in value.values():
                look(inner)
        elif hasattr(value, "__dataclass_fields__") and not isinstance(value, Document):
            for inner in vars(value).values():
                look(inner)

    look(batch)
    return found


def without_values(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    """Fake tensors cannot be asked whether rows hold several documents, or whether a mask hides anything."""
    ctc, masking = "distft.tasks.ctc.functional.ctc_loss", transformers.masking_utils
    monkeypatch.setattr(ctc, lambda chances, *args, **kwargs: WrittenOut.apply(chances, 11))  # type: ignore[no-untyped-call]
    monkeypatch.setattr(masking, "find_packed_sequence_indices", lambda positions: None)
    model = architecture_of(recipe)
    if not any(one.batch.mask for one in given(recipe, model, shape_of(recipe, model))):
        monkeypatch.setattr(masking, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: True)
    if not isinstance(recipe.task, sections.DPO):  # decoders make themselves a mask that hides nothing
        real = masking._ignore_causal_mask_sdpa
        monkeypatch.setattr(
            masking, "_ignore_causal_mask_sdpa", lambda mask, *sizes, **more: real(None, *sizes, **more)
        )

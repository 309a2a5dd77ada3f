"""What a micro-batch of a recipe holds, as full or as empty as it can be: rows, tokens, and places with logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from distft.plan.architecture import Architecture, Stack
from distft.plan.duration import Shape
from distft.plan.loss import Batch
from distft.plan.operations import Implementation
from distft.recipe import tasks as sections
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskPart

SOUND_PLACE = 20  # milliseconds of speech that become one place of wav2vec2's layers
WHISPER_READS, WHISPER_WRITES = 1500, 448  # places, if the model has no tables of them
ONLY_EAGER = {"bloom", "deberta-v2", "gemma2", "gpt_oss", "mpnet"}  # model types without fused attention on a CPU
MASKED = {"bloom", "falcon", "mpt", "nemotron", "stablelm"}  # decoders that cannot be told where documents begin
UNTOLD = {"umt5"}  # encoder-decoders that make scores by distance for whole rows
SPEECH = sections.CTC | sections.SpeechSeq2Seq
ENCODES = (
    sections.SequenceClassification
    | sections.TokenClassification
    | sections.QuestionAnswering
    | sections.MaskedLM
    | sections.MultiTask
)
WRITES = sections.Seq2SeqLM | sections.SpeechSeq2Seq


@dataclass(frozen=True)
class Given:
    """A task, its model, what that is given, and whether its loss picks the places of its targets (see `Computing`)."""

    task: sections.SingleTask
    model: Architecture
    batch: Batch
    gathered: bool


def shape_of(recipe: Recipe, model: Architecture) -> Shape:
    """Of several tasks rows are alike."""
    rows, tokens, task = recipe.train.micro_rows, recipe.data.row_tokens, recipe.task
    if model.positions is not None and not isinstance(task, SPEECH):
        tokens = min(tokens, model.positions)
    written = tokens if isinstance(task, sections.Seq2SeqLM) else 0
    if isinstance(task, sections.SpeechSeq2Seq):
        tokens, written = map(places_of, model.stacks[:1] + model.stacks[-1:], (WHISPER_READS, WHISPER_WRITES))
    elif isinstance(task, sections.CTC):
        tokens = max(1, tokens // SOUND_PLACE)
    elif isinstance(task, sections.DPO):
        rows *= 2
    return Shape(rows, tokens, written, rows * (written or tokens))


def emptiest(full: Shape, recipe: Recipe) -> Shape:
    """The least that some micro-batch holds, whatever the data are: a token for each row, and one that is learned.

    Where documents are packed, two rows of which one is less than half full would have been one. Whisper hears 30
    seconds in any case.
    """
    tokens = 1
    if isinstance(recipe.task, sections.CausalLM) and recipe.data.packing:
        tokens = max(1, full.tokens // 2)
    elif isinstance(recipe.task, sections.SpeechSeq2Seq):
        tokens = full.tokens
    return Shape(full.rows, tokens, min(1, full.written), full.rows)


def given(recipe: Recipe, model: Architecture, shape: Shape) -> Iterator[Given]:
    """Of each task of the recipe. Of rows that are padded one is shorter by a token, so that there is a mask."""
    parts = recipe.parts()
    for part in parts:
        places, targets = shape.targets, shape.targets
        if isinstance(part.task, sections.MaskedLM):
            targets = round(part.task.mask * places)
        elif isinstance(part.task, sections.SequenceClassification):
            places = targets = shape.rows
        batch = Batch(shape.rows, shape.tokens, places, targets, shape.written, masked(recipe, part, model))
        own = model if len(parts) == 1 else part_of(model, part)
        yield Given(part.task, own, batch, not isinstance(part.task, WRITES | sections.CTC))


def places_of(stack: Stack, otherwise: int) -> int:
    tables = [one for one in stack.other if one.kind == "embedding" and "embed_positions" in one.name]
    return tables[0].shape[0] if tables else otherwise


def masked(recipe: Recipe, part: TaskPart, model: Architecture) -> bool:
    """Whether attention gets a mask: rows hold several documents, or they differ in length."""
    if isinstance(part.task, sections.CausalLM):
        return recipe.data.packing is not False
    if isinstance(part.task, sections.SpeechSeq2Seq):
        return False  # spectra are of one length
    if isinstance(part.task, sections.CTC) and not any("conv_layers.1.layer_norm" in one.name for one in model.named()):
        return False  # with one norm over a whole recording such models were trained without a mask
    return recipe.train.micro_rows > 1 or isinstance(part.task, sections.DPO)


def part_of(model: Architecture, part: TaskPart) -> Architecture:
    """The model as one of several tasks runs it: with its own head, and without poolers, which see a token of a row."""
    own = f"parts.{part.name}."
    head = tuple(one for one in model.head if one.name.startswith(own) and ".pooler." not in one.name)
    labels = [one.shape[0] for one in head if one.kind == "matrix"]
    if isinstance(part.task, sections.MaskedLM):
        labels = [one.shape[0] for stack in model.stacks for one in stack.other if one.kind == "embedding"][:1]
    return replace(model, head=head, vocabulary=labels[-1] if labels else model.vocabulary)


def attention(recipe: Recipe, model: Architecture, on_gpu: bool) -> Implementation:
    """What `auto` stands for where flash attention is not installed, as far as a plan without torch can know."""
    if recipe.model.attention != "auto":
        return recipe.model.attention
    if told(recipe, model) and (not on_gpu or _kernel_fits(recipe, model)):
        return "varlen"
    return "eager" if model.model_type in ONLY_EAGER else "sdpa"


def told(recipe: Recipe, model: Architecture) -> bool:
    """Whether attention can be told where documents begin: of decoders, of encoder-decoders, and of encoders that look
    both ways."""
    if isinstance(recipe.task, sections.CausalLM | sections.DPO):
        return model.model_type not in MASKED
    if isinstance(recipe.task, sections.Seq2SeqLM):
        return model.model_type not in UNTOLD | ONLY_EAGER
    layers = [layers.attention for stack in model.stacks for layers in stack.layers]
    both_ways = len(model.stacks) == 1 and all(one is not None and not one.causal for one in layers)
    return isinstance(recipe.task, ENCODES) and both_ways and model.model_type not in ONLY_EAGER


def _kernel_fits(recipe: Recipe, model: Architecture) -> bool:
    """torch's kernel takes no fp32, and but for decoders `auto` leaves it where scores are dropped or biased."""
    layers = [layers.attention for stack in model.stacks for layers in stack.layers]
    more = isinstance(recipe.task, ENCODES | sections.Seq2SeqLM) and any(
        one is not None and (one.dropout or one.bias) for one in layers
    )
    return recipe.engine.dtype == "bf16" and not more

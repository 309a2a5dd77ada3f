"""The `task` section of a recipe: what is learned, and what its scores are called."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from distft.recipe.section import Positive, Section, Text

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "wer", "cer", "mse", "mae"})
WITH_HEADS = frozenset({"sequence-classification", "token-classification", "question-answering", "ctc", "multi-task"})
"""Tasks that put a head of their own on a model."""

Overlong = Literal["split", "truncate", "drop"]


def _distinct(labels: list[str]) -> list[str]:
    [(label, count)] = Counter(labels).most_common(1)
    if count > 1:
        raise ValueError(f"{label!r} is there {count} times; name each label once")
    return labels


Labels = Annotated[list[Text], Field(min_length=1), AfterValidator(_distinct)]


class CausalLM(Section):
    """Predict each token from those before it: instructions, conversations, plain text."""

    type: Literal["causal-lm"] = "causal-lm"
    SCORES: ClassVar = ("loss", "perplexity", "accuracy")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("split", "drop")
    FIELDS: ClassVar[tuple[str, ...]] = ()  # those of its many formats, which are looked at with the data


class MaskedLM(Section):
    """Predict hidden tokens from all around them (Devlin et al. 2018, arXiv:1810.04805)."""

    type: Literal["masked-lm"]
    mask: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.15, description="share of the tokens to predict")
    SCORES: ClassVar = ("loss", "perplexity", "accuracy")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("split", "truncate", "drop")
    FIELDS: ClassVar[tuple[str, ...]] = ("text",)


class SequenceClassification(Section):
    """A label for a text, or for a pair of texts."""

    type: Literal["sequence-classification"]
    kind: Literal["single", "multi-label", "regression"] = Field(
        "single", description="one label each, any number of labels each, or a number"
    )
    labels: Labels | None = Field(None, description="all labels; default: those in data.train, sorted")

    @model_validator(mode="after")
    def _numbers_have_no_labels(self) -> SequenceClassification:
        if self.kind == "regression" and self.labels is not None:
            raise ValueError("labels do not go with kind: regression, which predicts a number; leave them out")
        return self

    @property
    def SCORES(self) -> tuple[str, ...]:
        if self.kind == "regression":
            return ("loss", "mse", "mae", "pearson", "spearman")
        return ("loss", "accuracy", "f1", "macro_f1", "auc")

    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("truncate", "drop")
    FIELDS: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")


class TokenClassification(Section):
    """A tag for each word: named entities, parts of speech."""

    type: Literal["token-classification"]
    crf: bool = Field(False, description="a linear-chain CRF over the tags (Lafferty et al. 2001)")
    labels: Labels | None = Field(None, description="all tags; default: those in data.train, sorted")
    SCORES: ClassVar = ("loss", "f1", "precision", "recall", "macro_f1", "accuracy")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("split", "truncate", "drop")
    FIELDS: ClassVar[tuple[str, ...]] = ("tokens", "tags", "text")


class QuestionAnswering(Section):
    """Where in a context the answer to a question is."""

    type: Literal["question-answering"]
    stride: Positive = Field(64, description="tokens that two windows of one long context share")
    longest_answer: Positive = Field(30, description="tokens an answer may have")
    unanswerable: bool = Field(False, description="some questions have no answer in their context")
    SCORES: ClassVar = ("loss", "exact_match", "f1")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("split",)
    FIELDS: ClassVar[tuple[str, ...]] = ("context", "question", "answers", "answer", "is_impossible")


class Generation(Section):
    """How a sequence to sequence model writes, in evaluation and prediction."""

    beams: Positive = Field(4, description="beams; 1: always the likeliest token")
    longest_target: Positive = Field(128, description="tokens of a target; what is longer is cut")


class Seq2SeqLM(Generation):
    """Write a target text for a source text: translation, summarisation."""

    type: Literal["seq2seq-lm"]
    prefix: str = Field("", description="what is written before each source, T5's way to name a task")
    source_language: Text | None = Field(None, description="as the tokenizer names it (mBART, NLLB: en_XX, eng_Latn)")
    target_language: Text | None = Field(None, description="as the tokenizer names it (mBART, NLLB: de_DE, deu_Latn)")
    SCORES: ClassVar = ("loss", "bleu", "chrf", "rouge1", "rouge2", "rougeL")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("truncate", "drop")
    FIELDS: ClassVar[tuple[str, ...]] = ("source", "target")


class CTC(Section):
    """Transcribe speech with an encoder (Graves et al. 2006): the wav2vec2 family. Rows count milliseconds."""

    type: Literal["ctc"]
    SCORES: ClassVar = ("loss", "wer", "cer")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("drop",)
    FIELDS: ClassVar[tuple[str, ...]] = ("audio", "text")


class SpeechSeq2Seq(Generation):
    """Transcribe speech with an encoder and a decoder: the Whisper family. Rows count milliseconds."""

    type: Literal["speech-seq2seq"]
    language: Text | None = Field(None, description="name or code of the language, for models that know several")
    SCORES: ClassVar = ("loss", "wer", "cer")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("truncate", "drop")
    FIELDS: ClassVar[tuple[str, ...]] = ("audio", "text")


class DPO(Section):
    """Prefer one answer to another (Rafailov et al. 2023, arXiv:2305.18290)."""

    type: Literal["dpo"]
    beta: Annotated[float, Field(gt=0.0)] = Field(0.1, description="how much it costs to leave the reference")
    SCORES: ClassVar = ("loss", "reward_accuracy", "reward_margin")
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("drop",)
    FIELDS: ClassVar[tuple[str, ...]] = ("prompt", "conversations", "messages", "chosen", "rejected")


Single = Annotated[
    CausalLM
    | MaskedLM
    | SequenceClassification
    | TokenClassification
    | QuestionAnswering
    | Seq2SeqLM
    | CTC
    | SpeechSeq2Seq
    | DPO,
    Field(discriminator="type"),
]
OfEncoder = Annotated[
    MaskedLM | SequenceClassification | TokenClassification | QuestionAnswering, Field(discriminator="type")
]


class Part(Section):
    """One of several tasks, with data of its own."""

    task: OfEncoder
    train: Text | dict[str, Text] = Field(description="as data.train")
    eval: Text | dict[str, Text] | None = Field(None, description="as data.eval")
    fields: dict[str, str] = Field(default_factory=dict, description="as data.fields")
    format: Literal["auto", "conll", "lines"] = Field("auto", description="as data.format")
    delimiter: Text | None = Field(None, description="as data.delimiter")
    columns: list[Text] = Field(default_factory=list, description="as data.columns")
    weight: Annotated[float, Field(gt=0.0)] | None = Field(None, description="share of the micro-batches")


class MultiTask(Section):
    """Several tasks over one encoder, a head each; a micro-batch is of one task."""

    type: Literal["multi-task"]
    tasks: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Part], Field(min_length=2)] = Field(
        description="{name: {task: ..., train: ..., eval: ...}}"
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="a task of n rows is drawn in proportion to n ** (1 / temperature), unless it has a weight"
    )
    OVERLONG: ClassVar[tuple[Overlong, ...]] = ("split", "truncate", "drop")

    @property
    def SCORES(self) -> tuple[str, ...]:
        return ("loss", *(f"{name}.{score}" for name, part in self.tasks.items() for score in part.task.SCORES))

    @model_validator(mode="after")
    def _weights_for_all_or_none(self) -> MultiTask:
        without = [name for name, part in self.tasks.items() if part.weight is None]
        if without and len(without) < len(self.tasks):
            raise ValueError(f"give a weight to all tasks or to none; {', '.join(without)} has none")
        return self


Task = Annotated[
    CausalLM
    | MaskedLM
    | SequenceClassification
    | TokenClassification
    | QuestionAnswering
    | Seq2SeqLM
    | CTC
    | SpeechSeq2Seq
    | DPO
    | MultiTask,
    Field(discriminator="type"),
]

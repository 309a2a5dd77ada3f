"""The `task` section of a recipe: one class per task, with the names of its scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from distft.recipe.section import Encoding, Positive, Section, Text
from distft.recipe.sources import DataSource, Format, Spec

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "wer", "cer", "mse", "mae"})

Overlong = Literal["split", "truncate", "drop"]
TaskName = str | None  # of one of several tasks; None: the only task of a run


def _distinct(labels: list[str]) -> list[str]:
    [(label, count)] = Counter(labels).most_common(1)
    if count > 1:
        raise ValueError(f"{label!r} is listed {count} times; list each label once")
    return labels


LabelNames = Annotated[list[Text], Field(min_length=1), AfterValidator(_distinct)]


class TaskSection(Section):
    """The keys of one task, and what the other sections of a recipe need to know about it.

    A subclass has a `type` with one literal value and says beside its keys:

    SCORES: names of the scores of held-out data; a property if they depend on the keys.
    OVERLONG: what can be done with a record longer than a row; the first is the default.
    FIELDS: fields that its records have; empty if they are only known with the data.
    HAS_HEAD: True if the task puts a head of its own on the model.
    BALANCES: True if the task can add the load-balancing loss of a mixture of experts.
    """

    OVERLONG: ClassVar[tuple[Overlong, ...]]
    FIELDS: ClassVar[tuple[str, ...]] = ()
    HAS_HEAD: ClassVar[bool] = False
    BALANCES: ClassVar[bool] = False


class CausalLM(TaskSection):
    """Predict each token from those before it: instructions, conversations, plain text."""

    type: Literal["causal-lm"] = "causal-lm"
    SCORES: ClassVar = ("loss", "perplexity", "accuracy")
    OVERLONG = ("split", "drop")
    BALANCES = True


class MaskedLM(TaskSection):
    """Predict hidden tokens from all around them (Devlin et al. 2018, arXiv:1810.04805)."""

    type: Literal["masked-lm"]
    mask: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.15, description="fraction of the tokens to predict")
    SCORES: ClassVar = ("loss", "perplexity", "accuracy")
    OVERLONG = ("split", "truncate", "drop")
    FIELDS = ("text",)


class SequenceClassification(TaskSection):
    """A label for a text, or for a pair of texts."""

    type: Literal["sequence-classification"]
    kind: Literal["single", "multi-label", "regression"] = Field(
        "single", description="one label per text, any number of labels, or a number"
    )
    labels: LabelNames | None = Field(None, description="list of all labels; default: those in data.train, sorted")

    @model_validator(mode="after")
    def _numbers_have_no_labels(self) -> SequenceClassification:
        if self.kind == "regression" and self.labels is not None:
            raise ValueError("labels cannot be used with kind: regression, which predicts a number; leave them out")
        return self

    @property
    def SCORES(self) -> tuple[str, ...]:
        if self.kind == "regression":
            return ("loss", "mse", "mae", "pearson", "spearman")
        return ("loss", "accuracy", "f1", "macro_f1", "auc")

    OVERLONG = ("truncate", "drop")
    FIELDS = ("text", "text_pair", "label")
    HAS_HEAD = True


class TokenClassification(TaskSection):
    """A tag for each word: named entities, parts of speech."""

    type: Literal["token-classification"]
    crf: bool = Field(False, description="put a linear-chain CRF over the tags (Lafferty et al. 2001)")
    labels: LabelNames | None = Field(None, description="list of all tags; default: those in data.train, sorted")
    scheme: Literal["auto", "none", "exact", "IOB", "IOE", "BIOES", "BILOU", "BMES", "BMEWO"] = Field(
        "auto",
        description="how tags mark entities; auto: recognised by the labels; exact: only marks like B- and I- are "
        "recognised; none: each word is scored by itself",
    )
    words: Literal["signs", "spaces"] = Field(
        "signs",
        description="how a text becomes words; signs: at white space, and each punctuation mark, symbol and Chinese, "
        "Japanese, Korean or Thai character is one; spaces: at white space alone, and entities count words",
    )
    SCORES: ClassVar = ("loss", "f1", "precision", "recall", "macro_f1", "accuracy")
    OVERLONG = ("split", "truncate", "drop")
    FIELDS = ("tokens", "tags", "text", "spans")
    HAS_HEAD = True


class QuestionAnswering(TaskSection):
    """Find the answer to a question in a context."""

    type: Literal["question-answering"]
    stride: Positive = Field(64, description="overlap of two windows over a long context, in tokens")
    longest_answer: Positive = Field(30, description="maximum length of an answer, in tokens")
    unanswerable: bool = Field(False, description="allow questions without an answer in their context")
    SCORES: ClassVar = ("loss", "exact_match", "f1")
    OVERLONG = ("split",)
    FIELDS = ("context", "question", "answers", "answer", "is_impossible")
    HAS_HEAD = True


class Generation(TaskSection):
    """How an encoder-decoder generates text, in evaluation and prediction."""

    beams: Positive = Field(4, description="number of beams; 1: greedy search")
    longest_target: Positive = Field(128, description="maximum length of a target, in tokens; longer ones are cut")


class Seq2SeqLM(Generation):
    """Generate a target text from a source text: translation, summarization."""

    type: Literal["seq2seq-lm"]
    prefix: str = Field("", description="text put before each source, as T5 names its task")
    source_language: Text | None = Field(
        None, description="source language, as the tokenizer names it (mBART: en_XX, NLLB: eng_Latn)"
    )
    target_language: Text | None = Field(
        None, description="target language, as the tokenizer names it (mBART: de_DE, NLLB: deu_Latn)"
    )
    SCORES: ClassVar = ("loss", "bleu", "chrf", "rouge1", "rouge2", "rougeL")
    OVERLONG = ("truncate", "drop")
    FIELDS = ("source", "target")


class CTC(TaskSection):
    """Transcribe speech with an encoder (Graves et al. 2006): the wav2vec2 family. Rows count milliseconds."""

    type: Literal["ctc"]
    SCORES: ClassVar = ("loss", "wer", "cer")
    OVERLONG = ("drop",)
    FIELDS = ("audio", "text")
    HAS_HEAD = True


class SpeechSeq2Seq(Generation):
    """Transcribe speech with an encoder and a decoder: the Whisper family. Rows count milliseconds."""

    type: Literal["speech-seq2seq"]
    language: Text | None = Field(None, description="name or code of the language, for models that know several")
    SCORES: ClassVar = ("loss", "wer", "cer")
    OVERLONG = ("truncate", "drop")
    FIELDS = ("audio", "text")


class DPO(TaskSection):
    """Prefer one answer to another (Rafailov et al. 2023, arXiv:2305.18290)."""

    type: Literal["dpo"]
    beta: Annotated[float, Field(gt=0.0)] = Field(0.1, description="penalty for moving away from the reference model")
    SCORES: ClassVar = ("loss", "reward_accuracy", "reward_margin")
    OVERLONG = ("drop",)
    FIELDS = ("prompt", "conversations", "messages", "chosen", "rejected")


_Single = (
    CausalLM
    | MaskedLM
    | SequenceClassification
    | TokenClassification
    | QuestionAnswering
    | Seq2SeqLM
    | CTC
    | SpeechSeq2Seq
    | DPO
)
SingleTask = Annotated[_Single, Field(discriminator="type")]
EncoderTask = Annotated[
    MaskedLM | SequenceClassification | TokenClassification | QuestionAnswering, Field(discriminator="type")
]


class SubTask(Section):
    """One of several tasks, with data of its own."""

    task: EncoderTask
    train: Spec = Field(description="like data.train")
    eval: Spec | None = Field(None, description="like data.eval")
    fields: dict[str, str] = Field(default_factory=dict, description="like data.fields")
    format: Format = Field("auto", description="like data.format")
    delimiter: Text | None = Field(None, description="like data.delimiter")
    columns: list[Text] = Field(default_factory=list, description="like data.columns")
    encoding: Encoding | None = Field(None, description="like data.encoding")
    weight: Annotated[float, Field(gt=0.0)] | None = Field(None, description="relative share of the micro-batches")


class MultiTask(TaskSection):
    """Several tasks over one encoder, a head each; a micro-batch is of one task."""

    type: Literal["multi-task"]
    tasks: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], SubTask], Field(min_length=2)] = Field(
        description="{name: {task: ..., train: ..., eval: ...}}"
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="without weights, a task with n rows gets a share proportional to n ** (1 / temperature)"
    )
    OVERLONG = ("split", "truncate", "drop")
    HAS_HEAD = True

    @property
    def SCORES(self) -> tuple[str, ...]:
        return ("loss", *(f"{name}.{score}" for name, part in self.tasks.items() for score in part.task.SCORES))

    @model_validator(mode="after")
    def _weights_for_all_or_none(self) -> MultiTask:
        without = [name for name, part in self.tasks.items() if part.weight is None]
        if without and len(without) < len(self.tasks):
            raise ValueError(f"give a weight to all tasks or to none; {', '.join(without)} has none")
        return self


AnyTask = Annotated[_Single | MultiTask, Field(discriminator="type")]


def type_of(section: type[TaskSection]) -> str:
    """The value of `task.type` that stands for a section."""
    return str(next(iter(get_args(section.model_fields["type"].annotation)), ""))


BUILT_IN = frozenset(map(type_of, get_args(get_args(AnyTask)[0])))


@dataclass(frozen=True)
class TaskPart:
    """One task of a run with its data, whether it is the only one or one of several.

    Attributes:
        name: None if the run has one task.
        keys: where in the recipe its data are named: ("data",) or ("task", "tasks", NAME).
        train, eval: where its records come from, with all keys that these have.
        fields: of records that are no data of the recipe.
        bad_budget: share of the records of a data set that may be left out as bad; None: not one.
        weight: its share of the micro-batches; None: rows ** (1 / temperature).
    """

    name: TaskName
    task: SingleTask
    keys: tuple[str, ...]
    train: tuple[DataSource, ...]
    eval: tuple[DataSource, ...]
    fields: dict[str, str]
    detect: bool
    bad_budget: float | None = None
    weight: float | None = None
    temperature: float = 1.0

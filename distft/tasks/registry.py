"""The task registry: from `task.type` to the file that implements it, one line per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distft import plugins
from distft.recipe import tasks as sections
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskName, TaskPart
from distft.tasks import (
    causal_lm,
    ctc,
    dpo,
    masked_lm,
    question_answering,
    seq2seq_lm,
    sequence_classification,
    speech_seq2seq,
)
from distft.tasks.protocol import TaskSpec
from distft.tasks.token_classification import task as token_classification

MakeSpec = Callable[[Any, Mapping[str, str]], TaskSpec]

SPECS: dict[type[sections.TaskSection], MakeSpec] = {
    sections.CausalLM: causal_lm.spec,
    sections.MaskedLM: masked_lm.spec,
    sections.SequenceClassification: sequence_classification.spec,
    sections.TokenClassification: token_classification.spec,
    sections.QuestionAnswering: question_answering.spec,
    sections.Seq2SeqLM: seq2seq_lm.spec,
    sections.CTC: ctc.spec,
    sections.SpeechSeq2Seq: speech_seq2seq.spec,
    sections.DPO: dpo.spec,
}


def spec_of(part: TaskPart, fields: Mapping[str, str] | None = None) -> TaskSpec:
    """The task as it reads the records of a source with these `fields`; None: those of the part.

    Raises UserError if the package that brings the task's section does not bring the task.
    """
    make = SPECS.get(type(part.task)) or plugins.find(plugins.TASKS, part.task.type, "task")
    spec: TaskSpec = make(part.task, part.fields if fields is None else fields)
    return spec


def specs_of(recipe: Recipe) -> dict[TaskName, TaskSpec]:
    """The tasks of a run by name, in order; one that is alone has the name None."""
    return {part.name: spec_of(part) for part in recipe.parts()}

"""From the `task` section of a recipe to the file that knows that task."""

from __future__ import annotations

from distft.recipe import tasks as settings
from distft.recipe.schema import Recipe
from distft.tasks.multi_task import Asked, MultiKind
from distft.tasks.protocol import Kind


def kind_of(recipe: Recipe) -> Asked:
    task = recipe.task
    if isinstance(task, settings.MultiTask):
        return MultiKind({name: of_settings(part.task, part.fields) for name, part in task.tasks.items()})
    return of_settings(task, recipe.data.fields)


def of_settings(task: settings.Single, fields: dict[str, str]) -> Kind:
    """Imports the file of the task only: speech needs libraries that nobody else does."""
    match task:
        case settings.CausalLM():
            from distft.tasks.causal_lm import CausalKind

            return CausalKind(fields)
        case settings.MaskedLM():
            from distft.tasks.masked_lm import MaskedKind

            return MaskedKind(task, fields)
        case settings.SequenceClassification():
            from distft.tasks.sequence_classification import ClassificationKind

            return ClassificationKind(task, fields)
        case settings.TokenClassification():
            from distft.tasks.token_classification.task import TaggingKind

            return TaggingKind(task, fields)
        case settings.QuestionAnswering():
            from distft.tasks.question_answering import AnsweringKind

            return AnsweringKind(task, fields)
        case settings.Seq2SeqLM():
            from distft.tasks.seq2seq_lm import Seq2SeqKind

            return Seq2SeqKind(task, fields)
        case settings.CTC():
            from distft.tasks.ctc import CTCKind

            return CTCKind(task, fields)
        case settings.SpeechSeq2Seq():
            from distft.tasks.speech_seq2seq import SpeechKind

            return SpeechKind(task, fields)
        case settings.DPO():
            from distft.tasks.dpo import DPOKind

            return DPOKind(task, fields)

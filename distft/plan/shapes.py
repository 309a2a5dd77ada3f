"""The architecture of a recipe's model, with the head of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distft.errors import UserError
from distft.plan import unknown
from distft.plan.architecture import Architecture, Weight
from distft.plan.config import read
from distft.plan.families.catalogue import CATALOGUE, Config, Entry
from distft.plan.families.family import Goal
from distft.plan.recomputed import NEVER
from distft.plan.weights import Weights, joined, vector
from distft.recipe import tasks as sections
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskPart

LABEL = "label"  # the label set of the only task of a run
ASSUMED_LABELS = 2  # if neither the recipe nor the caller knows them; a head is small whatever it tells apart
ASSUMED_CHARACTERS = 32  # of a language in Latin script, with what stands for no character
GOALS: dict[type[sections.TaskSection], Goal] = {
    sections.CausalLM: "causal",
    sections.DPO: "causal",
    sections.MaskedLM: "masked",
    sections.SequenceClassification: "sequence",
    sections.TokenClassification: "tokens",
    sections.QuestionAnswering: "answers",
    sections.Seq2SeqLM: "seq2seq",
    sections.CTC: "ctc",
    sections.SpeechSeq2Seq: "speech",
}
LABELLED: tuple[Goal, ...] = ("sequence", "tokens", "answers")


def architecture_of(
    recipe: Recipe, labels: Mapping[str, int] | None = None, vocabulary: int | None = None
) -> Architecture:
    """The architecture of a recipe's model as its task loads it.

    Args:
        labels: how many labels each task has, by the names in labels.json; what the recipe names goes first.
        vocabulary: how many tokens the tokenizer of a new model has (`model.init`), where that is known. It is trained
            on the data, which may give fewer tokens than `model.init.vocab_size`, and of speech the characters alone.

    Raises:
        UserError: the model is not on this machine, its configuration is damaged, or transformers, which is asked about
            model types unknown here, cannot build it for the task.
    """
    parts = recipe.parts()
    goals = [goal_of(part) for part in parts]
    written = read(recipe.model)
    if recipe.model.init is not None and (vocabulary is not None or "ctc" in goals):
        written["vocab_size"] = vocabulary or ASSUMED_CHARACTERS
    entry = entry_of(written, goals)
    counts = [labels_of(part, labels or {}) for part in parts]
    if entry is None:
        return unknown.architecture_of(recipe, written, list(zip(parts, goals, counts, strict=True)))
    try:
        config = entry.completed(written)
        return made(entry, config, list(zip(parts, goals, counts, strict=True)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        where = "model.init" if recipe.model.init is not None else f"model.path: the config.json of {recipe.model.path}"
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{where} has sizes that make no {written['model_type']} model ({reason}); correct them"
        ) from None


def can_recompute(recipe: Recipe) -> bool:
    """Whether layers of its model can be computed again; of an unknown model type it is hoped."""
    try:
        return read(recipe.model).get("model_type") not in NEVER
    except UserError:
        return True


def is_known(recipe: Recipe) -> bool:
    """Whether the shapes of its model are told by formulas. If not, transformers has to be asked, which takes seconds.

    Raises:
        UserError: see `architecture_of`.
    """
    return entry_of(read(recipe.model), [goal_of(part) for part in recipe.parts()]) is not None


def entry_of(written: Config, goals: Sequence[Goal]) -> Entry | None:
    """What knows a model's shapes for all of its tasks."""
    entry = CATALOGUE.get(str(written["model_type"]))
    if entry is None or not set(goals) <= entry.family.heads.keys() or len({prefix(entry, one) for one in goals}) > 1:
        return None
    return entry


def made(entry: Entry, config: Config, parts: list[tuple[TaskPart, Goal, int]]) -> Architecture:
    """Several tasks have the encoder in common, which is called by its name in the first, and a head each."""
    before = [f"parts.{part.name}" if part.name else "" for part, _, _ in parts]
    inner = prefix(entry, parts[0][1])
    stacks = entry.family.stacks(config, ".".join(filter(None, (before[0], inner))))
    heads: dict[str, Weight] = {}
    for place, (part, goal, count) in zip(before, parts, strict=True):
        own = entry.family.heads[goal](config, count) + crf(part, count)
        for weight in own:
            shared = weight.name.startswith(f"{inner}.")  # a pooler
            [named] = joined(before[0] if shared else place, (weight,))
            heads[named.name] = named
    goal = parts[0][1]
    outputs = [(place, entry.family.outputs.get(goal)) for place, (_, goal, _) in zip(before, parts, strict=True)]
    words = config.get("decoder_vocab_size") or config["vocab_size"]
    return Architecture(
        model_type=str(config["model_type"]),
        stacks=stacks,
        head=tuple(heads.values()),
        vocabulary=max(count if goal in LABELLED else words for _, goal, count in parts),
        tied=any(name for _, name in outputs) and bool(config["tie_word_embeddings"]),
        positions=config.get("max_position_embeddings") or config.get("max_source_positions"),
        outputs=tuple(f"{place}.{name}" if place else name for place, name in outputs if name),
    )


def prefix(entry: Entry, goal: Goal) -> str:
    return entry.family.prefixes.get(goal, entry.family.prefix)


def goal_of(part: TaskPart) -> Goal:
    """What a task asks of a model. Raises UserError if the task is of another package."""
    found = GOALS.get(type(part.task))
    if found is None:
        raise UserError(f"task.type {part.task.type}: there is no plan for tasks of other packages")
    return found


def labels_of(part: TaskPart, known: Mapping[str, int]) -> int:
    task = part.task
    if isinstance(task, sections.QuestionAnswering):
        return 2  # where an answer starts and ends
    if isinstance(task, sections.SequenceClassification) and task.kind == "regression":
        return 1
    named = getattr(task, "labels", None)
    return len(named) if named else known.get(part.name or LABEL, ASSUMED_LABELS)


def crf(part: TaskPart, labels: int) -> Weights:
    if not getattr(part.task, "crf", False):
        return ()
    square = Weight("crf.transitions", (labels, labels), layout="bare")
    return (*vector("crf.start", labels), *vector("crf.end", labels), replace(square, kind="vector"))

"""`model.init`: small random models of real architectures, with a tokenizer trained on the data."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distft.data.bad_records import usable
from distft.data.records import Record
from distft.data.sources import Source
from distft.errors import UserError
from distft.model.attention import model_class
from distft.process import stop_signals
from distft.recipe.schema import ModelInit
from distft.run.files import complete_folder
from distft.tasks.protocol import Labels, ModelSpec, TaskSpec


def create(
    init: ModelInit, spec: ModelSpec, labels: Labels, data: Sequence[tuple[TaskSpec, Source]], folder: Path
) -> None:
    """A small random model as a task wants it, and its tokenizer, in `folder`; all or nothing.

    Args:
        data: what the tokenizer is trained on.

    Raises:
        UserError: transformers does not know the architecture or one of its sizes, or does not take them.
    """
    import transformers
    from transformers import AutoConfig

    try:
        known = AutoConfig.for_model(init.architecture)
    except ValueError:
        raise UserError(f"model.init.architecture: transformers does not know '{init.architecture}'") from None
    for key in init.config:
        if not hasattr(known, key) and not reads(spec.auto_class, known, key):
            raise UserError(f"model.init.config.{key}: {init.architecture} has no such setting")
        if known.attribute_map.get(key, key) == "vocab_size":  # some have a name of their own for it
            raise UserError(
                f"model.init.config.{key}: the tokenizer decides this; leave it out, and set model.init.vocab_size"
            )
    with _in_a_sentence(init):
        wanted = AutoConfig.for_model(init.architecture, **init.config)
    processor: Any = spec.family.make(texts(data), init.vocab_size, wanted)
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    tokens = len(tokenizer) if tokenizer is not processor else as_read(processor, wanted)
    with _in_a_sentence(init):
        sizes = {"vocab_size": tokens, **spec.family.special_ids(tokenizer), **init.config}
        config = AutoConfig.for_model(init.architecture, **sizes, **spec.head(labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init.seed)
            model = getattr(transformers, spec.auto_class).from_config(config, dtype=torch.float32)
    with complete_folder(folder) as staged:
        model.save_pretrained(staged)
        processor.save_pretrained(staged)


def reads(auto_class: str, config: Any, key: str) -> bool:
    """Whether a model's code asks for a setting that its configuration does not list: DeBERTa's position_buckets."""
    found = model_class(Path(), config, False, auto_class)
    source = inspect.getsource(sys.modules[found.__module__]) if found is not None else ""
    return re.search(rf"""getattr\([\w.]*config, ["']{re.escape(key)}["']""", source) is not None


def as_read(tokenizer: Any, config: Any) -> int:
    """How many tokens it has when transformers reads it beside this configuration: of some models one is added."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return max(len(tokenizer), len(AutoTokenizer.from_pretrained(folder)))


@contextmanager
def _in_a_sentence(init: ModelInit) -> Iterator[None]:
    """What transformers does not take, as a UserError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, TypeError, RuntimeError, KeyError, ZeroDivisionError, StrictDataclassError) as error:
        reason = f"it knows no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"model.init: {init.architecture} cannot be built with these sizes ({reason})") from None


def texts(data: Sequence[tuple[TaskSpec, Source]]) -> Iterator[str]:
    for spec, source in data:
        for _, found in usable(source, partial(_texts_of, spec)):
            stop_signals.check()
            yield from found


def _texts_of(spec: TaskSpec, record: Record) -> list[str]:
    return list(spec.texts(record))

"""Whether attention by document is right for a model: tried before the first step, against each document alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from distft.data.records import Document
from distft.engine.deepspeed import Engine
from distft.errors import UserError
from distft.model import attention
from distft.model.context import RunContext
from distft.process import distributed
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.tasks.causal_lm import Causal
from distft.tasks.dpo import Preference
from distft.tasks.protocol import Learned
from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.encoder_decoder import EncoderDecoder
from distft.training import encoder_trial, pair_trial

_SIZES = (6, 5, 1, 3)  # tokens of the documents of a trial
_WRONG = "varlen does not give this model what it makes of each document alone"
_WINDOWS = ("sliding_window", "attention_chunk_size")  # how transformers' configurations name the reach of attention


def is_ahead(run: RunDir, recipe: Recipe) -> bool:
    """Whether there may still be a trial in a run that has a checkpoint: one that had none when it began."""
    return recipe.model.attention == VARLEN and not run.attention.exists()


def settle(context: RunContext, task: Learned[Any], engine: Engine, ranks: Ranks, console: Console) -> None:
    """Try attention by document, if the model has it, unless the run has done so. What is found is remembered. If it is
    not right, the model gets the attention that it would have had else. Collective.

    Raises:
        UserError: the recipe asks for it, and it is not right for the model.
    """
    causal = task.causal if isinstance(task, Preference) else task
    wrapped: Any = engine.module
    model = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    if getattr(model.config, "_attn_implementation", "") != VARLEN:
        return
    run, recipe = context.run, context.recipe

    def look() -> bool:
        return run.newest_commit() > 0 and attention.takes_documents(run, starts=False)

    def leaves_out() -> bool:
        return attention.leaves_out(run)

    if distributed.on_rank_0(ranks, "attention/tried", look):
        encoder_trial.leave_out(task, distributed.on_rank_0(ranks, "attention/leaves out", leaves_out))
        return
    other = attention.masked(context.base, recipe, context.model_spec)
    less = False
    if isinstance(causal, Causal):
        right = _is_right(causal, engine, model, other, recipe, ranks)
    elif isinstance(task, EncoderDecoder):
        right = pair_trial.is_right(task, engine, other, _reach(model.config, recipe.data.row_tokens), ranks)
    else:
        reach = _reach(model.config, recipe.data.row_tokens)
        less = encoder_trial.leave_out(task, True) and encoder_trial.is_right(task, engine, other, reach, ranks)
        if not less:
            encoder_trial.leave_out(task, False)
        right = less or encoder_trial.is_right(task, engine, other, reach, ranks)
    if not right and recipe.model.attention == VARLEN:
        raise UserError(f"model.attention: {_WRONG}; set it to auto")
    distributed.on_rank_0(ranks, "attention/kept", lambda: attention.keep_trial(run, right, less))
    if right:
        return
    model.set_attn_implementation(other)
    if isinstance(causal, Causal):
        causal.rows = replace(causal.rows, flatten=False)
    if isinstance(task, EncoderDecoder):
        task.flat = False
    for inputs in encoder_trial.inputs_of(task).values():
        inputs.flat = False
    console.say(
        f"model.attention auto: varlen does not give this model what it makes of each document alone, so {other}"
    )


def _is_right(causal: Causal, engine: Engine, model: Any, other: str, recipe: Recipe, ranks: Ranks) -> bool:
    """Collective."""
    embeddings = model.get_input_embeddings()
    vocabulary = getattr(embeddings, "base_layer", embeddings).num_embeddings
    engine.model.eval()
    leaks = causal.documents_leak(engine.model, vocabulary, ranks.device)
    documents = _documents(_reach(model.config, recipe.data.row_tokens), vocabulary)
    together = torch.cat(_logits(causal, engine.model, documents, ranks.device))
    model.set_attn_implementation(other)
    apart = Causal(model.forward, flatten=False)
    alone = torch.cat([_logits(apart, engine.model, [one], ranks.device)[0] for one in documents])
    model.set_attn_implementation(VARLEN)
    engine.model.train()
    tolerance = encoder_trial.TOLERANCE[together.dtype] * (float(alone.abs().max()) or 1.0)
    differs = not torch.allclose(together.float(), alone.float(), rtol=0.0, atol=tolerance)
    [found] = distributed.sum_over_ranks([float(leaks or differs)])
    return found == 0


def _logits(causal: Causal, model: Any, documents: Sequence[Document], device: torch.device) -> list[torch.Tensor]:
    """Of all tokens of documents that share a row, by document."""
    batch = causal.collate([documents], device)
    with torch.no_grad():
        logits = causal.logits(model, batch)[0]
    sizes = [document.size for document in documents]
    return list(torch.split(logits[: sum(sizes)], sizes))


def _documents(reach: int, vocabulary: int) -> list[Document]:
    draw = np.random.default_rng(0)
    sizes = (max(_SIZES[0], reach), *_SIZES[1:])
    return [
        Document({"tokens": draw.integers(vocabulary, size=n).astype(np.int32), "targets": np.arange(n) > 0}, n)
        for n in sizes
    ]


def _reach(config: Any, row_tokens: int) -> int:
    """Tokens of a document in which the window of a model shows, if a row has that many."""
    text = config.get_text_config()
    windows = [size for name in _WINDOWS if isinstance(size := getattr(text, name, None), int)]
    reach = min(windows, default=row_tokens) + 3
    return reach if reach <= row_tokens else 0

"""Whether an encoder-decoder makes of sources and targets in two rows what it makes of each pair alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distft.data.records import Column, Document
from distft.engine.deepspeed import Engine
from distft.process import distributed
from distft.process.distributed import Ranks
from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.decoder_targets import UNANSWERED
from distft.tasks.shared.encoder_decoder import EncoderDecoder
from distft.training.encoder_trial import LEAK, TOLERANCE, close

_READ, _WRITTEN = (5, 6, 1, 3, 5, 3), (2, 4, 3, 1, 2, 6)  # tokens; the first and the fifth pair are computed at once


def is_right(task: EncoderDecoder, engine: Engine, other: str, reach: int, ranks: Ranks) -> bool:
    """Logits of pairs in two rows beside those of each alone, with another attention; and that neither a source nor a
    target changes those of other pairs. Collective.

    Args:
        reach: tokens in which the window of the model shows; 0: it has none.
    """
    wrapped: Any = engine.module
    whole = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    embeddings = whole.get_input_embeddings()
    vocabulary = getattr(embeddings, "base_layer", embeddings).num_embeddings
    engine.model.eval()
    right = task.flat and _agrees(task, engine.model, whole, other, reach, vocabulary, ranks.device)
    engine.model.train()
    [wrong] = distributed.sum_over_ranks([float(not right)])
    return wrong == 0


def _agrees(
    task: EncoderDecoder, model: Any, whole: Any, other: str, reach: int, vocabulary: int, device: torch.device
) -> bool:
    """`model`: to be called; `whole`: of transformers, below it."""
    pairs, others = _pairs(reach, vocabulary, 0), _pairs(reach, vocabulary, 1)
    read = Document({**pairs[0].columns, "tokens": others[0]["tokens"]}, pairs[0].size)
    written = Document({**pairs[0].columns, "labels": others[0]["labels"]}, pairs[0].size)
    try:
        together, *after = (_logits(task, model, [one, *pairs[1:]], device) for one in (pairs[0], read, written))
        task.flat = False
        whole.set_attn_implementation(other)
        apart = [_logits(task, model, [one], device)[0] for one in pairs]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):  # its code wants documents as rows
        return False
    finally:
        task.flat = True
        whole.set_attn_implementation(VARLEN)
    return close(together, apart, TOLERANCE) and all(close(together[1:], found[1:], LEAK) for found in after)


@torch.no_grad()
def _logits(task: EncoderDecoder, model: Any, pairs: Sequence[Document], device: torch.device) -> list[torch.Tensor]:
    """Of the tokens of each target."""
    batch = task.collate([[pair] for pair in pairs], device)
    logits = task.logits(model, batch)
    if batch.flat is not None:
        logits = batch.flat.written.laid_out(logits)
    return [own[: len(pair["labels"])] for own, pair in zip(logits, pairs, strict=True)]


def _pairs(reach: int, vocabulary: int, seed: int) -> list[Document]:
    draw, found = np.random.default_rng(seed), []
    read, written = ((max(sizes[0], reach), *sizes[1:]) for sizes in (_READ, _WRITTEN))
    for size, answered in zip(read, written, strict=True):
        tokens, labels = (draw.integers(vocabulary, size=n).astype(np.int32) for n in (size, answered))
        columns: dict[str, Column] = {
            "tokens": tokens,
            "types": np.zeros(size, np.uint8),
            **UNANSWERED,
            "labels": labels,
        }
        found.append(Document(columns, size, answered))
    return found

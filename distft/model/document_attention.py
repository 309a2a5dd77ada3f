"""Attention by document ("varlen"): of tokens that several documents share a row in, without a mask of all pairs.

Rows come as one row, and the model's forward is told where documents begin (`tasks.shared.boundaries.Boundaries`),
which transformers' models hand on to the function of attention. Documents of one size that stand side by side are
computed at once. In the decoder of an encoder-decoder each target looks at its own source, of another size
(`tasks.shared.flat_pairs`). Where nothing is told, as in generation, each row is one document, and whatever has a mask
is left to transformers' sdpa. What else a class may ask of attention is not done, and found by the trial
(`training.attention_trial`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distft.model.dense_attention import attend
from distft.plan.operations import SHORT
from distft.tasks.shared.boundaries import VARLEN

_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_KERNEL_SIZE = 256  # of a head, at most; flash attention's


def offer() -> None:
    """Make it known to transformers by its name."""
    AttentionInterface.register(VARLEN, document_attention)
    AttentionMaskInterface.register(VARLEN, document_mask)


def document_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    config: Any = None,
    **rest: Any,
) -> torch.Tensor | None:
    """None where `document_attention` needs none: no padding, no cache, and a window that each layer knows itself.

    A mask of more rows than there are is that of what a flat row becomes behind the encoder
    (`tasks.shared.flat_rows`)."""
    if attention_mask is not None and attention_mask.shape[0] != batch_size:
        attention_mask, kv_length = None, q_length
    window_is_known = local_size is None or local_size == getattr(config, "sliding_window", None)
    if attention_mask is None and q_length == kv_length and window_is_known and not use_vmap:
        return None
    given = {"attention_mask": attention_mask, "local_size": local_size, "use_vmap": use_vmap, **rest}
    mask: torch.Tensor | None = sdpa_mask(batch_size, q_length, kv_length, **given)
    return mask


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    document_sizes: Sequence[int] | None = None,
    source_sizes: Sequence[int] | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """[B, T, heads, size] of query [B, heads, T, size], key and value [B, fewer heads, T or S, size].

    Args:
        softcap: scores s become softcap * tanh(s / softcap).
        s_aux: [heads], a score more for each query, which takes its part of the weight and has no value.
        position_bias: added to scores, for each two places of the longest document; not where a source is looked at.
        cu_seq_lens_q: int32 [documents + 1], where documents begin, and the end; `cu_seq_lens_k`: their sources.
        document_sizes: the tokens of each document, the same for all B rows; None: a row is one.
        source_sizes: in a decoder, the tokens of each document's source, at which attention that is not causal looks.
    """
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    places, plain = query.shape[2], softcap is None and s_aux is None
    told = document_sizes is not None and (attention_mask is None or attention_mask.numel() == 0)
    if not told and (attention_mask is not None or key.shape[2] != places):
        if plain:
            found, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, causal, position_bias, **rest
            )
            return found, None
        return _by_scores(query, key, value, attention_mask, dropout, scaling, softcap, s_aux), None
    sizes: Sequence[int] = [places] if document_sizes is None else document_sizes
    crosses = source_sizes is not None and not causal
    seen_sizes = source_sizes if crosses and source_sizes is not None else sizes
    bias = None if crosses else position_bias
    fits = plain and bias is None and not dropout and _kernel_takes(query, value)
    if fits and told and cu_seq_lens_q is not None:
        begins = cu_seq_lens_q, cu_seq_lens_k if crosses and cu_seq_lens_k is not None else cu_seq_lens_q
        longest = max(sizes), max(seen_sizes)
        return _by_kernel(query, key, value, scaling, sliding_window, causal, begins, longest), None
    runs = list(_runs(sizes, seen_sizes, together=source_sizes is not None or not causal or (plain and not dropout)))
    reaches = sliding_window is None or crosses or max(sizes) <= sliding_window
    if plain and not causal and bias is None and reaches and _is_dense(query, key, value, dropout, max(sizes)):
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return attend(q, k, v, runs, scale, dropout).unsqueeze(0), None
    parts: list[torch.Tensor] = []
    queries = _side_by_side(query, [(size, number) for size, _, number in runs])
    seen = [_side_by_side(tensor, [(size, number) for _, size, number in runs]) for tensor in (key, value)]
    for (size, seen_size, number), q, k, v in zip(runs, queries, *seen, strict=True):
        mask = None
        if sliding_window is not None and not crosses and size > sliding_window:
            mask = _band(size, sliding_window, causal, q.device)
        if bias is not None:
            near = mask if mask is not None or not causal else _band(size, size, causal, q.device)
            mask = bias[..., :size, :seen_size]
            mask = mask if near is None else mask.masked_fill(~near, torch.finfo(mask.dtype).min)
        if plain:
            found = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=causal and mask is None, scale=scaling, enable_gqa=True
            ).transpose(1, 2)
        else:
            near = mask if mask is not None or not causal else _band(size, size, causal, q.device)
            found = _by_scores(q, k, v, near, dropout, scaling, softcap, s_aux)
        parts.append(found.reshape(query.shape[0], number * size, *found.shape[2:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1), None


def _runs(sizes: Sequence[int], seen_sizes: Sequence[int], together: bool) -> Iterator[tuple[int, int, int]]:
    """(size, that of what it looks at, how many such documents stand side by side). Draws of dropout and the sum of
    sinks' gradients depend on what is computed at once: causal models had each document by itself, which runs that were
    begun so must keep."""
    for (size, seen_size), same in groupby(zip(sizes, seen_sizes, strict=True)):
        number = len(list(same))
        yield from [(size, seen_size, number)] if together else [(size, seen_size, 1)] * number


def _side_by_side(tensor: torch.Tensor, runs: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """[B * number, heads, size, ...] for each run of documents of one size, of [B, heads, T, ...]. Split at once:
    backward through each part alone would fill the whole row with zeros."""
    parts = torch.split(tensor.transpose(1, 2), [size * number for size, number in runs], 1)
    return [
        part.reshape(len(part) * number, size, *part.shape[2:]).transpose(1, 2)
        for part, (size, number) in zip(parts, runs, strict=True)
    ]


def _is_dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, longest: int) -> bool:
    """Whether a CPU would hold all scores anyway, or documents are so short that they are few."""
    alike = query.shape[1] == key.shape[1] and query.shape[3] == value.shape[3]
    return query.is_cpu and len(query) == 1 and alike and (dropout > 0 or longest <= SHORT)


def _kernel_takes(query: torch.Tensor, value: torch.Tensor) -> bool:
    size = query.shape[3]
    return query.is_cuda and query.dtype in _KERNEL_DTYPES and value.shape[3] == size <= _KERNEL_SIZE and size % 8 == 0


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    causal: bool,
    begins: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
) -> torch.Tensor:
    """torch's kernel for documents of any lengths. It was never run: no GPU was at hand.

    Args:
        begins, longest: of documents, and of what they look at.
    """
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    reach = -1 if window is None else window - 1
    found = varlen.varlen_attn(
        q,
        k,
        v,
        *begins,
        *longest,
        scale=scaling,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=True,
    )
    assert isinstance(found, torch.Tensor)
    return found.unsqueeze(0)


def _by_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """What sdpa does not do, with all scores in memory. `mask`: True for what is seen."""
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(shared, 1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:  # not by -inf: padding before a prompt sees nothing, and must stay a number
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:  # less their largest in the model's numbers, as gpt-oss: its routers turn on single bits
        scores = torch.cat((scores, sinks.view(1, heads, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)), 3)
        scores = scores - scores.amax(3, keepdim=True)
    weights = torch.softmax(scores, 3, torch.float32).to(query.dtype)[..., : key.shape[2]]
    return (functional.dropout(weights, dropout) @ value).transpose(1, 2)


def _band(size: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    """bool [size, size]: each place sees itself and what comes before it, `window` places in all; and as many behind it
    if it looks both ways."""
    seen = torch.ones(size, size, dtype=torch.bool, device=device).triu(1 - window)
    return seen.tril() if causal else seen.tril(window - 1)

"""Model FLOPs of training, for MFU: what forward and backward need, from the model's weights and the lengths of texts.

After Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B), whose matrix products are those of Kaplan et al. 2020
(arXiv:2001.08361, section 2.1). A text of n tokens takes

    2 W n              forward, W: elements of all weights that a token is multiplied with
    2 W' n             gradients of activations, W': those weights that something trained lies below
    2 W'' n            gradients of weights, W'': those that are trained
    4 p d  (x 3)       attention in each layer, forward (x 3 with backward): scores and values, p: pairs of tokens that
                       see each other, n n / 2 if attention is causal, n n if not, fewer under a sliding window;
                       d: heads x their size

Looking up an embedding takes none, the head takes its products even where it shares their weights, at the places where
logits are computed. Of experts those count that a token is sent to. The encoder's weights, and keys and values of
attention over it, are counted per token read, the decoder's per token written. Left out: norms, activations, softmax,
the optimizer, padding, and what is computed twice (activation checkpointing): this is MFU and not HFU.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distft.tasks.shared.lengths import Lengths

OVER_ENCODER = {"EncDecAttention", "encoder_attn", "crossattention", "cross_attn"}  # names of modules in transformers
KEYS_AND_VALUES = {"k", "v", "k_proj", "v_proj", "key", "value"}
UNUSED = {"original_module", "lora_embedding_A"}  # of PEFT: the copy that is not trained; looked up, not multiplied


@dataclass(frozen=True)
class Attention:
    """Attention in layers of one kind. FLOPs are forward and backward together, of all these layers.

    Attributes:
        per_pair: FLOPs for each pair of tokens that see each other.
        window: tokens that a token sees on each side; None: all.
        over_encoder: the same again for each pair of a token written and one read.
    """

    per_pair: float
    causal: bool
    window: int | None = None
    over_encoder: bool = False

    def flops(self, own: Sequence[int], read: Sequence[int] = ()) -> float:
        pairs = sum(map(self._pairs, own))
        if self.over_encoder:
            pairs += sum(a * b for a, b in zip(own, read, strict=True))
        return self.per_pair * pairs

    def _pairs(self, length: int) -> float:
        side = length if self.window is None else min(length, self.window)
        one_side = side * (length - side / 2)
        return one_side if self.causal else 2 * one_side


@dataclass(frozen=True)
class Work:
    """What a model does for each token: FLOPs of forward and backward.

    Attributes:
        per_read, per_written, per_logits, per_sequence: of weights, for each token that the only stack or the encoder
            reads, that a decoder is given, for each place with logits, and for each sequence.
        reading, writing: attention in the layers of the only stack or the encoder, and of a decoder behind an encoder.
        logits_at_targets: logits are computed there only.
    """

    per_read: float
    per_written: float
    per_logits: float
    per_sequence: float
    reading: Sequence[Attention]
    writing: Sequence[Attention]
    logits_at_targets: bool

    def flops(self, lengths: Lengths) -> float:
        read = lengths.read
        written = (lengths.written or read) if self.writing else ()
        logits = lengths.targets if self.logits_at_targets else sum(written or read)
        weights = self.per_read * sum(read) + self.per_written * sum(written)
        weights += self.per_logits * logits + self.per_sequence * len(read)
        attention = sum(one.flops(read) for one in self.reading)
        return weights + attention + sum(one.flops(written, read) for one in self.writing)


@dataclass(frozen=True)
class _Weight:
    """A parameter. `elements`: those that are multiplied with a token, 0 for what is looked up or added."""

    owner: int  # id of its module
    path: Sequence[str]  # names of the modules around it
    shape: Sequence[int]
    elements: int
    trained: bool


def work_of(model: Any, at_targets: bool = False) -> Work | None:
    """What a model of transformers does, with an adapter or without, whole or in shards.

    Args:
        at_targets: logits are made of targets only, whatever its forward takes.

    None where it cannot be told: layers that are used more than once, or experts of which nobody says how many work.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    encoder = base.get_encoder() if config.is_encoder_decoder else None
    inside = {id(module) for module in encoder.modules()} if encoder is not None else set()
    layers = _layers(base, lambda module: encoder is None or id(module) in inside)
    decoder = _layers(base, lambda module: id(module) not in inside) if encoder is not None else []
    if len(layers) != config.num_hidden_layers or not isinstance(config.num_attention_heads, int):
        return None
    weights = list(_weights(model))
    first = next((place for place, weight in enumerate(weights) if weight.trained), len(weights))
    head = {id(module) for module in _head(base)}
    sums = dict.fromkeys(("read", "written", "logits", "sequence"), 0.0)
    for place, weight in enumerate(weights):
        active = _active(weight, config)
        if active is None:
            return None
        # gradients of activations are needed where something trained came before
        times = 2.0 * (1 + (place > first) + weight.trained)
        sums[_per(weight, head, inside)] += times * active * weight.elements
    reached = {weight.owner for weight in weights[first:]}
    return Work(
        sums["read"],
        sums["written"],
        sums["logits"],
        sums["sequence"],
        reading=_attention(layers, base, config, reached, behind=False),
        writing=_attention(decoder, base, config, reached, behind=True),
        logits_at_targets=at_targets or "logits_to_keep" in inspect.signature(base.forward).parameters,
    )


def _layers(model: Any, of_stack: Callable[[torch.nn.Module], bool]) -> list[torch.nn.Module]:
    """Of one stack: the list of modules with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and of_stack(module)]
    return list(max(lists, key=_size, default=[]))


def _size(module: torch.nn.Module) -> int:
    return sum(_shape(parameter).numel() for parameter in module.parameters())


def _weights(model: torch.nn.Module) -> Iterator[_Weight]:
    """All parameters in the order in which a token meets them, which is that of their modules."""
    for name, module in model.named_modules():
        path = name.split(".")
        if UNUSED.intersection(path):
            continue
        looked_up = isinstance(module, torch.nn.Embedding)
        for own, parameter in module._parameters.items():
            if parameter is not None:
                shape = _shape(parameter)
                multiplied = len(shape) > 1 and not looked_up and not own.endswith("bias")
                elements = shape.numel() if multiplied else 0
                yield _Weight(id(module), path, shape, elements, parameter.requires_grad)


def _shape(parameter: Any) -> torch.Size:
    """Whole even where ZeRO-3 shards it or 4 bits share a byte."""
    if getattr(parameter, "quant_state", None) is not None:
        return torch.Size(parameter.quant_state.shape)
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _active(weight: _Weight, config: Any) -> float | None:
    """The share of a weight that a token is multiplied with: less than all of experts; None: it is not known."""
    if "experts" not in weight.path or not weight.elements:
        return 1.0
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    known = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    experts = weight.shape[0] if len(weight.shape) > 2 else known
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    return chosen / experts if isinstance(chosen, int) and isinstance(experts, int) else None


def _per(weight: _Weight, head: set[int], encoder: set[int]) -> str:
    """What a weight is used once for."""
    if weight.owner in head:
        return "logits"
    if "pooler" in weight.path:
        return "sequence"
    over_encoder = OVER_ENCODER.intersection(weight.path) and KEYS_AND_VALUES.intersection(weight.path)
    return "read" if not encoder or weight.owner in encoder or over_encoder else "written"


def _head(base: Any) -> Iterator[torch.nn.Module]:
    """The modules that make logits over a vocabulary."""
    found = base.get_output_embeddings()
    yield from found.modules() if found is not None else ()


def _attention(
    layers: Sequence[torch.nn.Module], base: Any, config: Any, reached: set[int], behind: bool
) -> list[Attention]:
    """Attention in a stack, by kinds of layers.

    Args:
        reached: ids of modules that backward reaches.
        behind: it is a decoder behind an encoder.
    """
    heads, size = config.num_attention_heads, getattr(config, "head_dim", None)
    size = size or config.hidden_size // heads
    keys, values = (getattr(config, name, None) or size for name in ("qk_head_dim", "v_head_dim"))
    windows = {
        "full_attention": None,
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": (getattr(config, "attention_chunk_size", None) or 0) // 2 or None,  # as many on average
    }
    everywhere = "sliding_attention" if getattr(config, "use_sliding_window", True) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [everywhere] * len(layers)
    found: Counter[tuple[bool, int | None]] = Counter()
    for kind, layer in zip(kinds, layers, strict=False):
        if kind not in windows:
            continue  # linear attention, a state space
        said = [module.is_causal for module in layer.modules() if hasattr(module, "is_causal")]
        causal = any(said) if said else behind or base.can_generate()
        found[causal, windows[kind]] += 3 if any(id(module) in reached for module in layer.modules()) else 1
    once = 2.0 * heads * (keys + values)
    return [Attention(times * once, causal, window, behind) for (causal, window), times in found.items()]

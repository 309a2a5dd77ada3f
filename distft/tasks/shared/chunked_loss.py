"""Cross-entropy of a linear head, whose logits are made a chunk at a time and never kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from distft.plan.loss import chunk_size


@dataclass(frozen=True)
class Rescaling:
    """What a model does to its head's output: y = cap tanh(factor x / cap), or factor x without a cap."""

    factor: float = 1.0
    cap: float | None = None

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.factor != 1.0:
            logits.mul_(self.factor)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def bend(self, rescaled: torch.Tensor) -> torch.Tensor | None:
        """What `backward_` needs to know of rescaled logits, before they are overwritten."""
        return None if self.cap is None else (rescaled / self.cap).square_().neg_().add_(1.0)

    def backward_(self, gradient: torch.Tensor, bend: torch.Tensor | None) -> torch.Tensor:
        """The gradient of the head's output from that of rescaled logits, in place."""
        if bend is not None:
            gradient.mul_(bend)
        return gradient.mul_(self.factor) if self.factor != 1.0 else gradient


@dataclass(frozen=True)
class Head:
    """A linear head, whole.

    Attributes:
        weight: [vocabulary, H]; bias: [vocabulary].
        chunk: most targets whose logits are alive at once.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    rescaling: Rescaling
    chunk: int

    def parts(self, count: int) -> Iterator[slice]:
        """Chunks of about the same size."""
        size = chunk_size(count, self.chunk, len(self.weight))
        for begin in range(0, count, max(1, size)):
            yield slice(begin, min(count, begin + size))

    def room(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the logits of the largest chunk, fp32."""
        size = next((part.stop for part in self.parts(len(hidden))), 0)
        return hidden.new_empty(size, len(self.weight), dtype=torch.float32)

    def logits(self, hidden: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        """fp32 [targets of a chunk, vocabulary], in `room`; as the model makes them, in its dtype."""
        logits = room[: len(hidden)]
        if hidden.dtype != torch.float32:
            logits.copy_(functional.linear(hidden, self.weight, self.bias))
        elif self.bias is None:
            torch.mm(hidden, self.weight.t(), out=logits)
        else:
            torch.addmm(self.bias, hidden, self.weight.t(), out=logits)
        return self.rescaling.apply_(logits)


def losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor, *, each: bool = False) -> torch.Tensor:
    """Their sum, or each of them, fp32. With gradients, those of the sum are computed along.

    Args:
        hidden: [N, H], of the targets only; targets: int64 [N].
        each: fp32 [N]. A head that is trained gets no gradient from them, since it depends on all of theirs.
    """
    if not each:
        return sum_and_each(head, hidden, targets)[0]
    found: torch.Tensor
    found, _ = _Losses.apply(hidden, head.weight.detach(), head.bias, targets, head, True)  # type: ignore[no-untyped-call]
    return found


def sum_and_each(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Their sum, as `losses`, and each of them without gradients, fp32 [N]."""
    found: tuple[torch.Tensor, torch.Tensor]
    found = _Losses.apply(hidden, head.weight, head.bias, targets, head, False)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def scores(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """fp32 [2, N]: the loss of each target, and 1 where it is the likeliest token."""
    found, room = hidden.new_empty(2, len(hidden), dtype=torch.float32), head.room(hidden)
    for part in head.parts(len(hidden)):
        logits = head.logits(hidden[part], room)
        found[1, part] = logits.argmax(1) == targets[part]
        found[0, part] = _to_probabilities(logits, targets[part])
    return found


def _to_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The losses; the logits are overwritten by their softmax."""
    wanted = logits.gather(1, targets.unsqueeze(1))
    most = logits.amax(1, keepdim=True)
    total = logits.sub_(most).exp_().sum(1, keepdim=True)
    logits.div_(total)
    return (total.log() + most - wanted).squeeze(1)


class _Losses(torch.autograd.Function):
    """The gradients are made in the forward pass, where the logits are, and the weight is whole under ZeRO-3."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        each: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        found, room = hidden.new_empty(len(hidden), dtype=torch.float32), head.room(hidden)
        ctx.made = made = _Gradients((hidden, weight, bias), ctx.needs_input_grad)
        for part in head.parts(len(hidden)):
            logits = head.logits(hidden[part], room)
            bend = head.rescaling.bend(logits)
            found[part] = _to_probabilities(logits, targets[part])
            logits[torch.arange(len(logits), device=logits.device), targets[part]] -= 1.0
            made.add(part, head.rescaling.backward_(logits, bend), hidden, weight)
        if each:
            return found, None
        ctx.mark_non_differentiable(found)
        return found.sum(), found

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        made, ctx.made = ctx.made, None
        return (*made.times(outer[0]), None, None, None)


class _Gradients:
    """Gradients of the sum of losses, added up over chunks; those of the weight in fp32, whatever its dtype."""

    def __init__(self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None], wanted: Sequence[bool]) -> None:
        self._dtype = inputs[0].dtype
        hidden, weight, bias = (one if want else None for one, want in zip(inputs, wanted, strict=False))
        self._hidden = None if hidden is None else torch.empty_like(hidden)
        self._weight = None if weight is None else torch.zeros_like(weight, dtype=torch.float32)
        self._bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, part: slice, logits: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> None:
        """Of a chunk. `logits`: fp32, the gradient of the head's output; `hidden`: of all chunks."""
        if self._bias is not None:
            self._bias.add_(logits.sum(0))
        logits = logits.to(hidden.dtype)
        if self._hidden is not None:
            torch.mm(logits, weight, out=self._hidden[part])
        if self._weight is None:
            return
        if hidden.dtype == torch.float32:
            self._weight.addmm_(logits.t(), hidden[part])
        else:
            self._weight.add_(logits.t() @ hidden[part])

    def times(self, factor: torch.Tensor) -> Iterator[torch.Tensor | None]:
        """Times the gradient of their sum, or of each loss. They are of use once only."""
        yield None if self._hidden is None else self._hidden.mul_(factor.unsqueeze(-1))
        for one in (self._weight, self._bias):
            yield None if one is None else one.mul_(factor).to(self._dtype)

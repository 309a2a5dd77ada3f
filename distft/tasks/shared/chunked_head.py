"""A model whose head is told the targets: it makes their logits a chunk at a time, and losses of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn import functional

from distft.errors import first_line
from distft.tasks.shared.chunked_loss import Head, Rescaling, losses, scores, sum_and_each
from distft.tasks.shared.routers import settings_of

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # keys of configurations
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # by which logits are multiplied, or divided
_MOST = 60.0  # a cap shows


@dataclass(frozen=True)
class Call:
    """A forward pass whose targets are known.

    Attributes:
        forward: calls the model, and returns its output.
        at: int64 [N], where the targets' hidden states are among all that the head is given.
        targets: int64 [N].
    """

    forward: Callable[[], Any]
    at: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class ChunkedHead:
    """A linear head within a model of transformers.

    It is reached by hooks for the time of a call: its parameters, their names and its own code stay as they are. They
    run between those by which ZeRO-3 gathers the weight and gives it back. The losses leave the head and the model
    as their outputs, because DeepSpeed begins backward there.

    Attributes:
        model: whose output gets the losses as `loss`; its logits are of no place then.
        chunk: most targets whose logits are alive at once.
    """

    model: torch.nn.Module
    linear: torch.nn.Linear
    chunk: int
    rescaling: Rescaling = Rescaling()  # noqa: RUF009 - it is frozen

    @property
    def trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.linear.parameters())

    def sum_of_losses(self, call: Call) -> Any:
        """The model's output; `loss` has a gradient of the head too."""
        return self._run(call, lambda hidden: losses(self._head(), hidden, call.targets))

    def sum_and_each(self, call: Call) -> tuple[Any, torch.Tensor]:
        """As `sum_of_losses`, and each loss without gradients, fp32 [N]."""
        found: list[torch.Tensor] = []

        def compute(hidden: torch.Tensor) -> torch.Tensor:
            total, each = sum_and_each(self._head(), hidden, call.targets)
            found[:] = [each]
            return total

        return self._run(call, compute), found[0]

    def each_loss(self, call: Call) -> Any:
        """The model's output, with `loss` fp32 [N]. Of a head that is trained it is for use without gradients."""
        assert not (self.trained and torch.is_grad_enabled())
        return self._run(call, lambda hidden: losses(self._head(), hidden, call.targets, each=True))

    def scores(self, call: Call) -> torch.Tensor:
        """fp32 [2, N]: the loss of each target, and 1 where it is the likeliest token."""
        found: torch.Tensor = self._run(call, lambda hidden: scores(self._head(), hidden, call.targets)).loss
        return found

    def logits(self, call: Call) -> torch.Tensor:
        """fp32 [N, vocabulary], of a few targets."""

        def make(hidden: torch.Tensor) -> torch.Tensor:
            head = self._head()
            return head.logits(hidden, hidden.new_empty(len(hidden), len(head.weight), dtype=torch.float32))

        found: torch.Tensor = self._run(call, make).loss
        return found

    def _head(self) -> Head:
        """While the weight is whole."""
        return Head(self.linear.weight, self.linear.bias, self.rescaling, self.chunk)

    def _run(self, call: Call, compute: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The output of a forward pass, in which `compute` takes the place of the head."""
        held: list[torch.Tensor] = []

        def take(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
            held.append(inputs[0])
            return inputs[0][..., :0, :]

        def make(module: torch.nn.Module, inputs: Any, none: torch.Tensor) -> torch.Tensor:
            hidden = held.pop()
            held.append(none.detach())
            return compute(hidden.flatten(0, -2)[call.at])

        def hide(module: torch.nn.Module, inputs: Any, made: torch.Tensor) -> torch.Tensor:
            none = held.pop()
            held.append(made)
            return none

        def give(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            output["loss"] = held.pop()
            return output

        with ExitStack() as hooks:
            for hook in (
                self.linear.register_forward_pre_hook(take),  # once the weight is gathered
                self.linear.register_forward_hook(make, prepend=True),  # before it is given back
                self.linear.register_forward_hook(hide),  # after DeepSpeed has marked it
                self.model.register_forward_hook(give, prepend=True),
            ):
                hooks.callback(hook.remove)
            return call.forward()


@runtime_checkable
class Scored(Protocol):
    """A task whose losses are those of a head over a vocabulary.

    Attributes:
        head: is told the targets; None: the model makes all logits at once.
    """

    head: ChunkedHead | None

    def few(self, model: Any, vocabulary: int, device: torch.device) -> Call:
        """A forward pass over a few tokens."""


def is_told(task: object) -> bool:
    """Whether a task's head is told the targets."""
    return isinstance(task, Scored) and task.head is not None


@torch.no_grad()
def find(model: Any, chunk: int, few: Callable[[int], Call]) -> ChunkedHead | str:
    """The head of a model in evaluation mode, or why it has none that can be used so. Collective under ZeRO-3.

    What the model does to its head's output is found by handing it known numbers in the place of that. Then logits and
    losses made in both ways are compared.

    Args:
        few: a forward pass over a few tokens of a vocabulary of this size.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    linear = base.get_output_embeddings()
    if type(linear) is not torch.nn.Linear:
        return f"its head is a {type(linear).__module__}.{type(linear).__name__}"
    call = few(linear.out_features)
    given, seen = _exchange(linear, call)
    if len(given) != 1 or given[0].shape != seen.shape:
        return f"its head is called {len(given)} times for other logits"
    known = given[0].float()
    fit = (one for one in rescalings(settings_of(base)) if _close(one.apply_(known.clone()), seen))
    if (rescaling := next(fit, None)) is None:
        return "what it does to its head's output is not known"
    found = ChunkedHead(base, linear, chunk, rescaling)
    own = call.forward().logits.flatten(0, -2)[call.at]
    try:
        logits, (scored, _) = found.logits(call), found.scores(call)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # its code wants all logits
        return first_line(error)
    expected = functional.cross_entropy(own.float(), call.targets, reduction="none").to(own.dtype)
    if not (_close(logits, own) and _close(scored, expected)):
        return "its logits differ from those of its head"
    return found


def rescalings(settings: Any) -> Iterator[Rescaling]:
    """Those that a configuration may speak of; what it says comes before nothing."""
    caps, factors = ([value for key in keys if (value := _number(settings, key))] for keys in (CAPS, FACTORS))
    for cap, factor in product([*caps, None], [*factors, *(1.0 / factor for factor in factors), 1.0]):
        yield Rescaling(factor, cap)


def _number(settings: Any, key: str) -> float | None:
    value = getattr(settings, key, None)
    return float(value) if isinstance(value, int | float) else None


def _exchange(linear: torch.nn.Linear, call: Call) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Known numbers that the model gets from its head, one tensor each time it asks, and the logits that it makes."""
    given: list[torch.Tensor] = []

    def exchange(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        known = torch.linspace(-_MOST, _MOST, output.numel(), dtype=output.dtype, device=output.device)
        given.append(known.view_as(output))
        return given[-1].clone()  # a model may change it in place

    with ExitStack() as hooks:
        hooks.callback(linear.register_forward_hook(exchange).remove)
        logits: torch.Tensor = call.forward().logits
    return given, logits


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """As far as rounding lets two ways agree."""
    share = 1e-5 if expected.dtype == torch.float32 else 2e-2
    expected = expected.float()
    scale = float(expected.abs().max()) or 1.0
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0.0, atol=share * scale)

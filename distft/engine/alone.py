"""The step of a rank that has all weights, and no other rank: clip, update, forget gradients, by torch alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def step(parameters: Iterable[torch.nn.Parameter], optimizer: torch.optim.Optimizer, clip: float) -> torch.Tensor:
    """The gradient norm before clipping; where it is not finite, nothing was changed.

    DeepSpeed's step of stage 0 comes to the same bits: it copies all gradients to reduce them with nobody, computes
    their norm once more, and looks through all modules of the model several times.

    Args:
        clip: the maximum norm; 0: no clipping.
    """
    gradients = whole_gradients(parameters)
    norms = torch.stack([gradient.norm() for gradient in gradients])
    norm: torch.Tensor = torch.linalg.vector_norm(norms)
    if torch.isfinite(norm):
        if clip:
            factor = clip / (norms.square().sum().sqrt() + 1e-6)
            for gradient in gradients if factor < 1 else ():
                gradient.mul_(factor)
        optimizer.step()
    optimizer.zero_grad()
    return norm


def whole_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Of all; zero where the model has not used a weight, which has a weight decay even so."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found

"""The step of a rank that is alone, beside torch's own clipping."""

from __future__ import annotations

import copy

import pytest
import torch

from distft.engine import alone


def model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)


def forward(module: torch.nn.Module, number: int) -> None:
    inputs = torch.randn(4, 7, generator=torch.Generator().manual_seed(number))
    module(inputs).square().sum().backward()


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e9])
def test_it_is_what_torch_does(clip: float) -> None:
    ours, plain = model(), model()
    steps, steps_of_plain = optimizer(ours), optimizer(plain)
    for number in range(3):
        forward(ours, number)
        forward(plain, number)
        norm = alone.step(ours.parameters(), steps, clip)
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip or float("inf"))
        steps_of_plain.step()
        steps_of_plain.zero_grad()
        assert torch.allclose(norm, expected)
        assert all(p.grad is None for p in ours.parameters())
    assert all(torch.allclose(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_nothing_changes_where_the_norm_is_not_finite() -> None:
    module = model()
    forward(module, 0)
    next(module.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
    before, steps = copy.deepcopy(module.state_dict()), optimizer(module)
    assert not torch.isfinite(alone.step(module.parameters(), steps, 1.0))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not steps.state
    assert all(p.grad is None for p in module.parameters())


def test_a_weight_that_was_not_used_decays() -> None:
    module = model()
    unused = module[2].bias
    assert isinstance(unused, torch.nn.Parameter)
    before = unused.detach().clone()
    inputs = torch.ones(1, 7)
    torch.nn.functional.linear(module[1](module[0](inputs)), module[2].weight).sum().backward()  # type: ignore[operator]
    alone.step(module.parameters(), optimizer(module), 1.0)
    assert torch.allclose(unused, before * (1 - 0.1 * 0.1))

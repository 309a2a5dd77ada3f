"""Ranks that hold the weights of a small model together, and call it more or less often than each other."""

from __future__ import annotations

import copy

import torch
from torch import nn

from distft.engine.gathering import Gathered, shard
from distft.process import distributed

CALLS = {0: 1, 1: 7}  # by rank


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(32, 80), nn.Linear(80, 32)
        self.scale = nn.Parameter(torch.randn(32))
        self.register_buffer("shift", torch.randn(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(self.wide(x).relu()) * self.scale + self.shift


class Model(nn.Module):
    """Its head is the embeddings, which it reads by itself as well; a norm is small enough to stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(101, 32)
        self.norm = nn.LayerNorm(32)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(32, 101, bias=False)
        self.head.weight = self.tokens.weight

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.norm(self.tokens(ids))
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, ids: torch.Tensor, fail: bool = False) -> torch.Tensor:
        x = self.encode(ids)
        if fail:
            raise ValueError
        return self.head(x) + x @ self.tokens.weight.T


def divided(whole: Model, device: torch.device) -> tuple[Model, Gathered]:
    """A copy of a model in shards, by what a reader would read."""
    values = {name: value.detach().clone() for name, value in whole.named_parameters()}
    model = copy.deepcopy(whole)
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is not None:
                module._parameters[key] = nn.Parameter(value.detach().to("meta"))
    model.head.weight = model.tokens.weight
    return model, shard(model, lambda name, low, numel: values[name].view(-1)[low : low + numel], device)


def main() -> None:
    ranks = distributed.init(60)
    torch.manual_seed(3)
    whole = Model().eval()
    model, gathered = divided(whole, ranks.device)
    total = sum(weight.nbytes for weight in whole.parameters())
    assert gathered.kept < 0.56 * total, (gathered.kept, total)
    with torch.inference_mode():
        for number in range(CALLS[ranks.rank]):
            ids = torch.randint(101, (ranks.rank + 2, number + 3))
            assert torch.allclose(model(ids), whole(ids), atol=1e-5)
            assert all(unit.whole is None for unit in gathered.units if unit.stays)
            if number == 3:  # what fails lets go of its weights, and others do not notice
                try:
                    model(ids, fail=True)
                except ValueError:
                    pass
            if number == 5:  # a part that is called by itself
                assert torch.allclose(model.layers[2](torch.ones(2, 32)), whole.layers[2](torch.ones(2, 32)), atol=1e-5)
        gathered.attend()
    assert all(unit.users == 0 for unit in gathered.units)
    assert distributed.gather_text(str(ranks.rank)) == ["0", "1"]  # they are in step again
    distributed.leave_group()


if __name__ == "__main__":
    main()

"""Weights that ZeRO-3 shares out, made one after the other before there is an engine: no rank ever holds the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from distft.engine import deepspeed
from distft.engine.configuration import configuration, stage
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe

Fill = Callable[[torch.Tensor, int], None]
"""Sets a stretch of a flattened weight, [numel], given the element with which it begins."""


class Shards:
    """How the ranks of a run share out weights.

    Attributes:
        device: where weights are whole for as long as they are used, and buffers always.
    """

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        self._ranks = ranks
        self._settings = configuration(recipe, ranks, trainable=0, total=0)
        self._zero: Any = deepspeed.connected().zero.Init(config_dict_or_path=self._settings)
        if self._zero.mem_efficient_linear:  # as within the context: torch's own layer would keep what was gathered
            self._zero._enable_mem_efficient_linear()
        self.device: torch.device = self._zero.local_device

    @classmethod
    def of(cls, recipe: Recipe, ranks: Ranks) -> Shards | None:
        """None below stage 3."""
        return cls(recipe, ranks) if stage(recipe, ranks.world) == 3 else None

    def parameter(self, shape: torch.Size, dtype: torch.dtype, fill: Fill) -> torch.nn.Parameter:
        """A weight of which this rank holds its stretch. No rank waits for another one.

        It is laid out by DeepSpeed as one that is made within `zero.Init`, which would have rank 0 send all of it to
        all others first. While it is made there is room for the whole weight; on a CPU what is not filled of that
        takes no memory.
        """
        made: Any = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=self.device))
        self._zero._convert_to_deepspeed_param(made)
        size = made.aligned_size() // self._ranks.world
        begin = self._ranks.rank * size
        numel = min(size, made.numel() - begin)  # the last stretches are padded
        if numel > 0:
            fill(made.detach().view(-1).narrow(0, begin, numel), begin)
        made.partition()
        return made  # type: ignore[no-any-return]

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Meanwhile transformers loads models straight into shards, and both it and PEFT gather what they look at."""
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(self._settings)
        try:
            yield
        finally:
            del alive  # by which they know

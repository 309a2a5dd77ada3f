"""Random draws inside models other than dropout, made to depend on the batch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from distft.data.records import Document


def keep_all_layers(model: Any) -> None:
    """No LayerDrop (Fan et al. 2019, arXiv:1909.11556): all ranks have to run the same graph in each step."""
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if hasattr(module, "layerdrop"):  # a copy, made when the module was
            module.layerdrop = 0.0


@contextmanager
def masks_from(documents: Sequence[Document]) -> Iterator[None]:
    """Masks of SpecAugment (Park et al. 2019, arXiv:1904.08779) that start from the documents' draws.

    transformers takes them from numpy's global generator, whose state no checkpoint has.
    """
    state = np.random.get_state()
    np.random.seed([document.draw & 0xFFFFFFFF for document in documents] or 0)
    try:
        yield
    finally:
        np.random.set_state(state)

"""The two things that travel between the stages: a record as read, a document as the model sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Record:
    """One example as it was read. `where` is for people: "path:line" or "path[index]"."""

    where: str
    fields: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens int32 [n] and targets bool [n].

    `targets[i]` says that token i is to be predicted from the tokens before it; `targets[0]` is always False.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]

"""How much a layer is given, in which way it computes, and the bytes that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distft.plan.operations import Implementation, Numbers, RmsNorm

RMS_NORMS: Mapping[str, RmsNorm] = {  # by model_type; others are narrow
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text"), "wide"),
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), "mixed"),
}

COPIED = {  # model_type: queries are put into the order of heads before attention
    *("deepseek_v2", "deepseek_v3", "glm", "glm4", "gpt_neox", "nemotron", "phi", "phi3", "stablelm", "whisper"),
}


@dataclass(frozen=True)
class Work:
    """How much a layer is given, and in which way it computes.

    Attributes:
        rows, tokens: of the stack that the layer is in.
        read: tokens of a row that the encoder has read.
        kind: implementation of attention.
        mask: attention in the stack gets a mask whatever its window.
        mask_over_encoder: so does attention over the encoder.
        rotary: queries and keys are turned by their positions.
        norm: of norms without a bias.
        copied: see `Scores`.
        learns: a gradient flows to the layer's input.
        memory_learns: and to what the encoder has read.
    """

    rows: int
    tokens: int
    read: int
    hidden: int
    numbers: Numbers
    kind: Implementation
    mask: bool
    mask_over_encoder: bool
    rotary: bool
    norm: RmsNorm
    copied: bool
    learns: bool
    memory_learns: bool


@dataclass(frozen=True)
class Kept:
    """Bytes of a layer.

    Attributes:
        own: kept by it from forward to backward, its input included if it is kept.
        inner: the same without its input.
        backward: most that is alive in its backward, `own` included.
        inner_backward: the same, less its input.
        lent, inner_lent: most in its forward, if an operation there takes much for a moment; else 0.
        forward: most that is alive in its forward if nothing is kept, beside its input.
        learns: a gradient flows through it.
    """

    own: int
    inner: int
    backward: int
    inner_backward: int
    lent: int
    inner_lent: int
    forward: int
    learns: bool

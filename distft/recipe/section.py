"""The base class of all recipe sections."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+[^/].*")
_HUB = re.compile(r"(?:https://(?:huggingface\.co|hf\.co)/|hf://)(?:datasets/)?([^/]+/[^/?#@]+)(?:/tree/main)?/?")


def is_url(text: str) -> bool:
    return _URL.fullmatch(text) is not None


def no_url(text: str) -> str:
    """Raises ValueError if a place is an address on the web."""
    if is_url(text):
        hub = _HUB.fullmatch(text)
        instead = f"write the hub id: {hub[1]}" if hub else "download it first, and give the file or folder"
        raise ValueError(f"got {text!r}; distft reads files, folders and hub ids: {instead}")
    return text


Place = Annotated[Text, AfterValidator(no_url)]


def _encodes(name: str) -> str:
    try:
        "a\n".encode(name)
    except (LookupError, UnicodeError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no encoding of text; write one such as utf-8, utf-16, gb18030, shift_jis, latin-1, cp1252"
        ) from error
    return name


def _day(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no day; write it as 2026-01-31") from error
    return text


Day = Annotated[str, AfterValidator(_day)]
Encoding = Annotated[str, AfterValidator(_encodes)]
Scalar = str | int | float | bool | None


class Section(BaseModel):
    """Unknown keys are errors, values are never coerced, numbers are finite, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, serialize_by_alias=True)

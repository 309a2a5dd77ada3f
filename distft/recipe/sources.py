"""Where the records of a task come from: one place, or a list of sources with keys of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from distft.recipe.section import Encoding, Place, Scalar, Section, Text

COMPRESSED = (".gz", ".zst")
Format = Literal["auto", "conll", "lines"]
Which = Literal["train", "eval"]

TEXT, MAPPING, LIST = TAGS = ("a text", "a mapping", "a list")  # pydantic has them in the place of an error


def kind_of(given: Any) -> str:
    """Which form of a key with several forms was meant, so that one says what is wrong with it, and not all."""
    if isinstance(given, list | tuple):
        return LIST
    return MAPPING if isinstance(given, dict | Section) else TEXT


class Condition(Section):
    """What a column holds in the records that are taken."""

    min: int | float | None = Field(None, description="smallest number")
    max: int | float | None = Field(None, description="largest number")
    none_of: list[Scalar] = Field(default_factory=list, description="values that it does not have")

    @model_validator(mode="after")
    def _says_something(self) -> Condition:
        if self.min is None and self.max is None and not self.none_of:
            raise ValueError("write min, max or none_of under the column, or the values that it may have")
        return self


Accepted = Annotated[
    Annotated[Scalar, Tag(TEXT)] | Annotated[list[Scalar], Tag(LIST)] | Annotated[Condition, Tag(MAPPING)],
    Discriminator(kind_of),
]
Filter = dict[str, Accepted]


class DataSource(Section):
    """One of several sources. What is left out is as in the section around it."""

    path: Place | dict[str, Place] = Field(
        description="file, folder of files, pattern such as chats/*.jsonl, folder written by `datasets`, hub id, or "
        "parallel files of lines"
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = Field(
        None, description="what it is called in the record; default: by its path"
    )
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None, description="relative share of the rows; none has one: all records of all sources, once per epoch"
    )
    filter: Filter = Field(
        default_factory=dict,
        description="records to take: {column: value, or list of values, or {min, max, none_of}}, all of it",
    )
    split: Text | None = Field(None, description="split, if the source has several; default: data.train_split")
    hub_config: str | None = Field(None, description="like data.hub_config")
    revision: Text | None = Field(None, description="like data.revision")
    fields: dict[str, str] | None = Field(None, description="like data.fields")
    template: Text | None = Field(None, description="like data.template")
    format: Format | None = Field(None, description="like data.format")
    delimiter: Text | None = Field(None, description="like data.delimiter")
    columns: list[Text] | None = Field(None, description="like data.columns")
    encoding: Encoding | None = Field(None, description="like data.encoding")

    @model_validator(mode="before")
    @classmethod
    def _by_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given


def is_pattern(path: str) -> bool:
    """Whether several files may match it."""
    return any(sign in path for sign in "*?[")


def _fit_together(sources: list[DataSource]) -> list[DataSource]:
    without = [name for name, source in zip(names(sources), sources, strict=True) if source.weight is None]
    if without and len(without) < len(sources):
        raise ValueError(f"give a weight to all sources or to none; {without[0]} has none")
    given = [source.name for source in sources if source.name is not None]
    if twice := [name for name in given if given.count(name) > 1]:
        raise ValueError(f"two sources are called {twice[0]!r}; give each a name of its own")
    return sources


def names(sources: Sequence[DataSource]) -> list[str]:
    """What each is called: its name, or what its path ends with; a number is added to what others are called too."""
    found: list[str] = []
    given = {source.name for source in sources}
    for source in sources:
        name = source.name or _name_of(source.path)
        number, first = 2, name
        while name in found or (source.name is None and name in given):
            name, number = f"{first}-{number}", number + 1
        found.append(name)
    return found


def _name_of(path: str | dict[str, str]) -> str:
    """chats for data/chats.jsonl.gz, data for data/*.jsonl, owner-name for a hub id."""
    first = path if isinstance(path, str) else next(iter(path.values()), "")
    place = Path(first)
    while is_pattern(place.name):
        place = place.parent
    name = place.name if place.is_absolute() else str(place)
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"\.[A-Za-z]+$", "", name)).strip("-.") or "data"


Sources = Annotated[list[DataSource], Field(min_length=1), AfterValidator(_fit_together)]
Spec = Annotated[
    Annotated[Place, Tag(TEXT)] | Annotated[dict[str, Place], Tag(MAPPING)] | Annotated[Sources, Tag(LIST)],
    Discriminator(kind_of),
]
"""What `data.train` and `data.eval` may be."""


def listed(spec: str | dict[str, str] | Sequence[DataSource] | None) -> list[DataSource]:
    """The sources that a recipe names, one or several."""
    if spec is None or isinstance(spec, list):
        return list(spec or ())
    assert isinstance(spec, str | dict)
    return [DataSource(path=spec)]


def completed(spec: str | dict[str, str] | Sequence[DataSource] | None, around: Mapping[str, Any]) -> Sources:
    """These sources, each with a name, and with what the section around them says where they say nothing."""
    sources, found = listed(spec), []
    for name, source in zip(names(sources), sources, strict=True):
        left = {**around, "name": name}
        given = {key: value for key in left if (value := getattr(source, key)) is not None}
        found.append(source.model_copy(update=left | given))
    return found

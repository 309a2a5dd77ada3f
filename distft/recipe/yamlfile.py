"""A strict YAML reader that keeps the line of each value and reports all problems at once.

Scalars mean what they mean in YAML 1.2; tags, keys given twice and numbers without end are refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distft.errors import UserError

Keys = tuple[str | int, ...]
LOST = ...
"""Stands for a value that could not be read, which is a problem told already."""

_MOST_BYTES = 1 << 20
_MOST_VALUES = 10_000  # after expanding aliases
_DEEPEST = 16
_LONGEST_NUMBER = 100
_TAG = "tag:yaml.org,2002:"
_STR, _MAP, _SEQ = _TAG + "str", _TAG + "map", _TAG + "seq"
# Plain scalars as in the core schema of YAML 1.2: `2e-4` is a number, `off` is text, and there are no dates.
_SCALARS: dict[str, tuple[str, str, Callable[[str], Any]]] = {  # tag: (first characters, pattern, meaning)
    _TAG + "null": (" ~nN", r"null|Null|NULL|~|", lambda text: None),
    _TAG + "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    _TAG + "int": ("-+0123456789", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", lambda text: _integer(text)),
    _TAG + "float": (
        "-+.0123456789",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),
    ),
}


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Loader(yaml.SafeLoader):
    """Composes nodes only; `Draft` gives them their values."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way: a table of the class)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if re.search("[\0\ud800-\udfff]", node.value):
            raise yaml.MarkedYAMLError(problem="a character that no text holds", problem_mark=node.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for something else than text."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML reads some unprintable characters (U+0085) back differently unless they are escapes
        return self.represent_scalar(_STR, data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


for _tag, (_first, _pattern, _) in _SCALARS.items():
    # PyYAML looks an empty scalar up under ""
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})\Z"), [c.strip() for c in _first])


def dump(values: Mapping[str, Any]) -> str:
    """YAML of plain values, in their order, which `read` and tools of YAML 1.1 understand alike."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class Place(NamedTuple):
    """Where a key was written. Places sort as they are reported: the file by lines, then the overrides."""

    rank: int
    line: int
    name: str
    folder: str  # where relative paths written here start

    def __str__(self) -> str:
        return self.name if self.rank else f"{self.name}:{self.line}"


def _compose(text: str, place: Place) -> yaml.Node | None:
    """The root node of a YAML document, None if it is empty. Raises UserError where it is not YAML."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"character U+{int(error.character):04X}, which YAML does not allow"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        if re.match(r" *\t", (text.splitlines() + [""] * line)[line - 1]):
            problem = "the line is indented with a tab; YAML indents with spaces"
    except (ValueError, OverflowError, RecursionError):  # what PyYAML lets through
        line = loader.line + 1 if loader else 1
        problem = "nested too deep, or an escape out of range"
    raise UserError(f"{place._replace(line=line)}: not valid YAML: {' '.join(problem.split())}; correct the line")


@dataclass
class Draft:
    """A recipe being read: its values, where they were written, and what is wrong with them."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[tuple[Place, Keys, str]] = field(default_factory=list)
    size: int = 0

    def value(self, node: yaml.Node, key: Keys, start: Place) -> Any:
        """The plain value of `node`, at `key`. Raises UserError when there is no end to it."""
        place = start._replace(line=node.start_mark.line + 1)
        self.size += 1
        if self.size > _MOST_VALUES or len(key) > _DEEPEST:
            raise UserError(f"{place}: too many or too deeply nested values for a recipe; check the aliases (*name)")
        self.places.setdefault(key, place)
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._mapping(node, key, start)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self.value(item, (*key, index), start) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag == _STR:
            return node.value
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node, key, place)
        tag = node.tag.replace(_TAG, "!!")
        return self._lose(place, key, f"the tag {short(tag)} is refused; write plain text, numbers and lists")

    def _mapping(self, node: yaml.MappingNode, key: Keys, start: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in node.value:
            place = start._replace(line=name.start_mark.line + 1)
            if not isinstance(name, yaml.ScalarNode) or name.tag != _STR:
                inner = (*key, name.value if isinstance(name, yaml.ScalarNode) else "?")
                self.problems.append((place, inner, "this key is not text; put it in quotes or remove it"))
                continue
            inner = (*key, name.value)
            if name.value in values:
                self.problems.append((place, inner, f"given twice, first at {self.places[inner]}; keep one"))
                continue
            self.places[inner] = place
            values[name.value] = self.value(value, inner, start)
        return values

    def _scalar(self, node: yaml.ScalarNode, key: Keys, place: Place) -> Any:
        _, pattern, meaning = _SCALARS[node.tag]
        text = node.value
        if not re.fullmatch(pattern, text):  # an explicit tag: !!int abc
            return self._lose(place, key, f"{short(text)} is not what its tag says; remove the tag")
        value = meaning(text) if len(text) <= _LONGEST_NUMBER else math.inf
        if value is not None and not math.isfinite(value):
            return self._lose(place, key, f"{short(text)} is not a finite number; write a smaller one")
        return value

    def _lose(self, place: Place, key: Keys, problem: str) -> Any:
        self.problems.append((place, key, problem))
        return LOST

    def override(self, text: str, rank: int) -> None:
        """Applies one `key.path=value`, making sections on the way."""
        place = Place(rank, 1, f"override {text!r}", os.getcwd())
        path, equals, value = text.partition("=")
        key = tuple(path.strip().split("."))
        if not equals or not all(key):
            self.problems.append((place, (), "not key.path=value; write for example train.steps=100"))
            return
        if " #" in re.sub(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"", "", value) and value.lstrip()[:1] not in ("|", ">"):
            self.problems.append((place, key, "' #' starts a comment in YAML; put the value in quotes"))
            return
        section = self.values
        for depth, part in enumerate(key[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
                self.places[key[:depth]] = place
            if not isinstance(section[part], dict):
                wrong = f"{dotted(key[:depth])} is {short(section[part])}, which holds no keys; set it as a whole"
                self.problems.append((place, key, wrong))
                return
            section = section[part]
        self.places = {old: where for old, where in self.places.items() if old[: len(key)] != key} | {key: place}
        try:
            node = _compose(value, place)
            section[key[-1]] = None if node is None else self.value(node, key, place)
        except UserError as error:
            section[key[-1]] = self._lose(place, key, str(error).removeprefix(f"{place}: "))

    def place(self, key: Keys) -> Place:
        """Where `key` was written, or else the section it belongs in."""
        while key not in self.places:
            key = key[:-1]
        return self.places[key]

    def report(self) -> str:
        """A line a problem, in the order in which the user wrote what is wrong."""
        told = sorted(self.problems, key=lambda problem: problem[0][:2])
        return "\n".join(": ".join(filter(None, (str(place), dotted(key), text))) for place, key, text in told)


def read(path: Path) -> Draft:
    """The file as it is. Raises UserError where it is no YAML mapping; other problems are kept in the draft."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the recipe as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read the recipe: {reason}; give the path of a YAML file") from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path}: larger than 1 MiB, so not a recipe; give the path of a YAML file")
    place = Place(0, 1, str(path), os.path.abspath(path.parent))
    node = _compose(text, place)
    if node is None:
        raise UserError(f"{path}: empty; a recipe needs at least the sections model, data and train")
    if not isinstance(node, yaml.MappingNode) or node.tag != _MAP:
        place = place._replace(line=node.start_mark.line + 1)
        raise UserError(f"{place}: not a recipe; write `key: value` lines, beginning with model:, data: or train:")
    draft = Draft()
    draft.values = draft.value(node, (), place)
    return draft


def dotted(key: Keys) -> str:
    """A key as people write it: train.steps."""
    return ".".join(str(part) if re.fullmatch(r"[\w<-]{1,64}", str(part)) else short(part) for part in key)


def short(value: object) -> str:
    """A value as people write it, cut to what fits in a sentence."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

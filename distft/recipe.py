"""Reads and writes recipes: strict YAML and overrides in, a frozen `Recipe` or one `UserError` out.

The keys themselves are in `distft.config`. Everything wrong with a recipe is reported at once, a line a problem.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distft.config import Checkpoint, Engine, Recipe, Track
from distft.errors import UserError

_FREE_SECTIONS: dict[str, type[BaseModel]] = {"engine": Engine, "checkpoint": Checkpoint, "track": Track}
MAY_CHANGE: frozenset[str] = frozenset(
    f"{name}.{key}" for name, section in _FREE_SECTIONS.items() for key in section.model_fields
) - {"engine.dtype"} | {"data.cache"}
"""Keys that may differ between two attempts in one run folder."""

Keys = tuple[str | int, ...]

_MOST_BYTES = 1 << 20
_MOST_VALUES = 10_000  # after expanding aliases
_DEEPEST = 16
_LONGEST_NUMBER = 100
_LOST = ...  # stands for a value that could not be read, which is a problem told already
_NAME_RULE = "1 to 64 of letters, digits, . _ -, not starting with a dot"
_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jinja")
_PATHS = {  # key: whether it may be a hub id, which looks like a relative path
    ("model", "path"): True,
    ("data", "train"): True,
    ("data", "eval"): True,
    ("data", "template"): False,
    ("data", "cache"): False,
}


@dataclass(frozen=True)
class Difference:
    """One key on which two recipes disagree; a value is None where a recipe has no such key."""

    key: str
    old: object
    new: object


def load(path: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe in `path`, changed by `key.path=value` overrides, with a name and absolute paths.

    Raises UserError, a line a problem, when a file or an override is not a valid recipe.
    """
    draft = _read(path)
    for rank, text in enumerate(overrides, start=1):
        draft.override(text, rank)
    draft.make_paths_absolute()
    if draft.values.get("name") is None:
        draft.values["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip(".")[:64] or "run"
    return draft.recipe()


def load_resolved(path: Path) -> Recipe:
    """The recipe that `dump` wrote to `path`, as it is. Raises UserError as `load` does."""
    return _read(path).recipe()


def dump(recipe: Recipe) -> str:
    """YAML with every key of `recipe`; `load` and `load_resolved` read it back to an equal recipe."""
    text: str = yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def differences(old: Recipe, new: Recipe) -> list[Difference]:
    """Every key on which `old` and `new` disagree, in the order of the recipe."""
    before, after = dict(_flat(old.model_dump())), dict(_flat(new.model_dump()))
    # repr, because 1, 1.0 and true are equal in Python and different in a model's configuration
    return [
        Difference(key, before.get(key), after.get(key))
        for key in before | after
        if repr(before.get(key, ...)) != repr(after.get(key, ...))
    ]


def refused(differences: Sequence[Difference]) -> list[Difference]:
    """Those that must not differ between two attempts in one run folder."""
    return [difference for difference in differences if difference.key not in MAY_CHANGE]


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
        "title": "distft recipe",
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None or prefix in ("model.init.config.", "data.fields."):
            # a null of ours is the same as no key; a null of theirs overwrites a default
            yield prefix + key, value


# --- YAML -------------------------------------------------------------------------------------------------------------

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
    """Composes nodes only; `_Draft` gives them their values."""

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


class _Place(NamedTuple):
    """Where a key was written. Places sort as they are reported: the file by lines, then the overrides."""

    rank: int
    line: int
    name: str
    folder: str  # where relative paths written here start

    def __str__(self) -> str:
        return self.name if self.rank else f"{self.name}:{self.line}"


def _compose(text: str, place: _Place) -> yaml.Node | None:
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


def _read(path: Path) -> _Draft:
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
    place = _Place(0, 1, str(path), os.path.abspath(path.parent))
    node = _compose(text, place)
    if node is None:
        raise UserError(f"{path}: empty; a recipe needs at least the sections model, data and train")
    if not isinstance(node, yaml.MappingNode) or node.tag != _MAP:
        place = place._replace(line=node.start_mark.line + 1)
        raise UserError(f"{place}: not a recipe; write `key: value` lines, beginning with model:, data: or train:")
    draft = _Draft()
    draft.values = draft.value(node, (), place)
    return draft


# --- values, where they were written, and what is wrong with them -----------------------------------------------------


@dataclass
class _Draft:
    """A recipe being read."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, _Place] = field(default_factory=dict)
    problems: list[tuple[_Place, Keys, str]] = field(default_factory=list)
    size: int = 0

    def value(self, node: yaml.Node, key: Keys, start: _Place) -> Any:
        """The plain value of `node`, at `key`. Raises UserError when there is no end to it."""
        place = start._replace(line=node.start_mark.line + 1)
        self.size += 1
        if self.size > _MOST_VALUES or len(key) > _DEEPEST:
            raise UserError(f"{place}: too many or too deep values for a recipe; check the aliases (*name)")
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
        return self._lose(place, key, f"the tag {_short(tag)} is refused; write plain text, numbers and lists")

    def _mapping(self, node: yaml.MappingNode, key: Keys, start: _Place) -> dict[str, Any]:
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

    def _scalar(self, node: yaml.ScalarNode, key: Keys, place: _Place) -> Any:
        _, pattern, meaning = _SCALARS[node.tag]
        text = node.value
        if not re.fullmatch(pattern, text):  # an explicit tag: !!int abc
            return self._lose(place, key, f"{_short(text)} is not what its tag says; remove the tag")
        value = meaning(text) if len(text) <= _LONGEST_NUMBER else math.inf
        if value is not None and not math.isfinite(value):
            return self._lose(place, key, f"{_short(text)} is not a finite number; write one of ordinary size")
        return value

    def _lose(self, place: _Place, key: Keys, problem: str) -> Any:
        self.problems.append((place, key, problem))
        return _LOST

    def override(self, text: str, rank: int) -> None:
        """Applies one `key.path=value`, making sections on the way."""
        place = _Place(rank, 1, f"override {text!r}", os.getcwd())
        path, equals, value = text.partition("=")
        key = tuple(path.strip().split("."))
        if not equals or not all(key):
            self.problems.append((place, (), "not key.path=value; write for example train.steps=100"))
            return
        section = self.values
        for depth, part in enumerate(key[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
                self.places[key[:depth]] = place
            if not isinstance(section[part], dict):
                wrong = f"{_dotted(key[:depth])} is {_short(section[part])}, which holds no keys; set it as a whole"
                self.problems.append((place, key, wrong))
                return
            section = section[part]
        self.places = {old: where for old, where in self.places.items() if old[: len(key)] != key} | {key: place}
        try:
            node = _compose(value, place)
            section[key[-1]] = None if node is None else self.value(node, key, place)
        except UserError as error:
            section[key[-1]] = self._lose(place, key, str(error).removeprefix(f"{place}: "))

    def make_paths_absolute(self) -> None:
        """Makes the paths of local files independent of where the recipe and the shell are."""
        for key, may_be_hub_id in _PATHS.items():
            section = self.values.get(key[0])
            if isinstance(section, dict) and isinstance(section.get(key[1]), str):
                folder = self.places[key].folder
                section[key[1]] = _absolute(section[key[1]], folder, may_be_hub_id)

    def recipe(self) -> Recipe:
        """The finished recipe. Raises UserError with every problem."""
        recipe = None
        try:
            recipe = Recipe.model_validate(self.values)
        except ValidationError as error:
            self.problems += self._invalid(error)
        if recipe and not self.problems:
            return recipe
        told = sorted(self.problems, key=lambda problem: problem[0][:2])
        raise UserError(
            "\n".join(": ".join(filter(None, (str(place), _dotted(key), text))) for place, key, text in told)
        )

    def _invalid(self, invalid: ValidationError) -> Iterator[tuple[_Place, Keys, str]]:
        """What pydantic found, in the words of the user's file."""
        found: dict[Keys, list[ErrorDetails]] = {}
        for error in invalid.errors(include_url=False):
            if error["input"] is not _LOST or error["type"] == "extra_forbidden":
                found.setdefault(self._key(error["loc"]), []).append(error)
        for key, errors in found.items():
            if errors[0]["type"].startswith("union_tag"):
                yield from self._invalid_tag(key, errors[0]["input"])
            else:
                yield self._place(key), key, _explain(errors)

    def _invalid_tag(self, key: Keys, given: dict[str, Any]) -> Iterator[tuple[_Place, Keys, str]]:
        """Of a section whose `type` decides which keys it has; pydantic looks no further than a wrong type."""
        sections, tag = _sections(key), (*key, "type")
        tags = " or ".join(repr(_tag_of(section)) for section in sections)
        if given.get("type") is not _LOST:
            got = f"got {_short(given['type'])}" if "type" in given else "missing"
            yield self._place(tag), tag, f"{got}; must be {tags}"
        valid = _names(sections)
        for name in given:
            if name not in valid:
                yield self._place((*key, name)), (*key, name), _unknown(name, valid)

    def _key(self, loc: Keys) -> Keys:
        """`loc` without what is no key: the tag of a union, and the names of its members."""
        key: Keys = ()
        value: Any = self.values
        for end, part in enumerate(loc):
            sections = _sections(loc[:end])
            inside = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
            if len(sections) < 2 and (sections or inside):
                key = (*key, part)
                value = value[part] if inside else None
        return key

    def _place(self, key: Keys) -> _Place:
        """Where `key` was written, or else the section it belongs in."""
        while key not in self.places:
            key = key[:-1]
        return self.places[key]


def _absolute(path: str, folder: str, may_be_hub_id: bool) -> str:
    """`path` as seen from `folder`; as it is when it is absolute, or nothing says that it is no hub id."""
    full = os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
    local = path.startswith(("./", "../", "~")) or path.lower().endswith(_DATA_SUFFIXES)
    if not path or os.path.isabs(path) or not (local or not may_be_hub_id or os.path.exists(full)):
        return path
    return full


# --- words ------------------------------------------------------------------------------------------------------------

_WORDS = {
    "a valid string": "text (in quotes if it looks like a number)",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid dictionary": "a mapping (key: value)",
}


def _explain(errors: list[ErrorDetails]) -> str:
    """What is wrong with one key and what to do; several errors are the members of one union."""
    loc, kind, given = errors[0]["loc"], errors[0]["type"], _short(errors[0]["input"])
    sections, parents = _sections(loc), _sections(loc[:-1])
    keys = ", ".join(_names(sections))
    if kind == "extra_forbidden":
        return _unknown(str(loc[-1]), _names(parents))
    if kind == "missing":
        about = parents[0].model_fields[str(loc[-1])].description
        return f"missing; give it: {about}" if about else f"missing; add this section, with some of its keys: {keys}"
    if kind == "value_error":
        return str(errors[0]["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type"):
        return f"got {given}; write keys under it, or leave it out: {keys}"
    if kind == "string_pattern_mismatch":
        return f"got {given}; must be {_NAME_RULE}"
    wanted = [re.sub(r"^(Input should|List should)| after validation", "", error["msg"]).strip() for error in errors]
    wanted = [_WORDS.get(text.removeprefix("be "), text.removeprefix("be ")) for text in wanted]
    must = "must" if wanted[0].startswith("have") else "must be"
    return f"got {given}; {must} {' or '.join(dict.fromkeys(wanted))}"


def _unknown(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name[:64], valid, n=1)
    return f"unknown key; {f'did you mean {near[0]}? ' if near else ''}valid keys: {', '.join(valid)}"


def _sections(loc: Keys) -> list[type[BaseModel]]:
    """The models that `loc` leads to: one, or the members of a union before its tag, or none for a plain value."""
    found: list[type[BaseModel]] = [Recipe]
    for part in loc:
        if len(found) > 1:
            found = [section for section in found if _tag_of(section) == part]
        else:
            fields = [section.model_fields[str(part)] for section in found if part in section.model_fields]
            found = [section for info in fields for section in _models(info.annotation)]
    return found


def _names(sections: list[type[BaseModel]]) -> list[str]:
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _models(part)]


def _tag_of(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields["type"].annotation)[0])


def _dotted(key: Keys) -> str:
    return ".".join(str(part) if re.fullmatch(r"[\w<-]{1,64}", str(part)) else _short(part) for part in key)


def _short(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

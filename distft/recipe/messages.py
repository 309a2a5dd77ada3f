"""Error messages for recipes and site profiles: pydantic's findings in the words of the user's file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distft.recipe.schema import Recipe
from distft.recipe.sources import TAGS
from distft.recipe.yamlfile import LOST, Keys, short

_NAME_RULE = "1 to 64 of letters, digits, . _ -, not starting with a dot"
_KINDS = {
    "a valid string": "text (in quotes if it looks like a number)",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid dictionary": "a mapping (key: value)",
}


def explain(
    invalid: ValidationError, values: Mapping[str, Any], root: type[BaseModel] = Recipe
) -> Iterator[tuple[Keys, str]]:
    """What is wrong with which key of `values`, meant as a `root`; silent about values that were lost before."""
    found: dict[Keys, list[ErrorDetails]] = {}
    for error in invalid.errors(include_url=False):
        if error["input"] is not LOST or error["type"] == "extra_forbidden":
            found.setdefault(_key(error["loc"], values, root), []).append(error)
    for key, errors in found.items():
        if any(len(other) > len(key) and other[: len(key)] == key for other in found):
            continue  # what is said of a part of a value was meant for one member of a union; the others did not fit
        if errors[0]["type"].startswith("union_tag"):
            yield from _invalid_tag(key, errors[0]["loc"], errors[0]["input"], root)
        else:
            yield key, _words(errors, root)


def _invalid_tag(key: Keys, loc: Keys, given: dict[str, Any], root: type[BaseModel]) -> Iterator[tuple[Keys, str]]:
    """Of a section whose `type` decides which keys it has; pydantic looks no further than a wrong type."""
    sections = _sections(loc, root)
    tags = list(map(_tag_of, sections))
    if given.get("type") is not LOST:
        got = f"got {short(given['type'])}" if "type" in given else "missing"
        hint = did_you_mean(given.get("type"), tags)
        yield (*key, "type"), f"{got}; {hint}must be {' or '.join(map(repr, tags))}"
    valid = _names(sections)
    for name in given:
        if name not in valid:
            yield (*key, name), _unknown(name, valid)


def _key(loc: Keys, values: Mapping[str, Any], root: type[BaseModel]) -> Keys:
    """`loc` without what is no key: the tags of unions, and the names of their members."""
    key: Keys = ()
    value: Any = values
    for end, part in enumerate(loc):
        if part in TAGS:
            continue
        sections = _sections(loc[:end], root)
        inside = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if len(sections) < 2 and (sections or inside):
            key = (*key, part)
            value = value[part] if inside else None
    return key


def _words(errors: list[ErrorDetails], root: type[BaseModel]) -> str:
    """What is wrong with one key and what to do; several errors are the members of one union."""
    loc, kind, given = errors[0]["loc"], errors[0]["type"], short(errors[0]["input"])
    sections, parents = _sections(loc, root), _sections(loc[:-1], root)
    keys = ", ".join(_names(sections))
    if kind == "extra_forbidden":
        return _unknown(str(loc[-1]), _names(parents))
    if kind == "missing":
        about = _fields(parents[0])[str(loc[-1])].description
        return f"missing; give it: {about}" if about else f"missing; add this section, with some of its keys: {keys}"
    if kind == "value_error":
        return str(errors[0]["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type"):
        return f"got {given}; write keys under it, or leave it out: {keys}"
    if kind == "string_pattern_mismatch":
        rule = f"be {_NAME_RULE}" if issubclass(root, Recipe) else errors[0]["msg"].removeprefix("String should ")
        return f"got {given}; must {rule}"
    wanted = [re.sub(r"^(Input|List|String) should| after validation", "", error["msg"]).strip() for error in errors]
    wanted = [_KINDS.get(text.removeprefix("be "), text.removeprefix("be ")) for text in wanted]
    must = "must" if wanted[0].startswith("have") else "must be"
    valid = [
        value for error in errors for value in re.findall("'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
    ]
    words = f"got {given}; {did_you_mean(errors[0]['input'], valid)}{must} {' or '.join(dict.fromkeys(wanted))}"
    return words + _not_a_list(errors[0]["input"]) if loc[-1] in _names(parents) else words


def _not_a_list(given: object) -> str:
    """What to write in place of a list, of a key that takes none."""
    if not isinstance(given, list):
        return ""
    if len(given) == 1:
        return f", not a list: write {short(given[0])} without brackets"
    return ", not a list"


def _unknown(name: str, valid: list[str]) -> str:
    return f"unknown key; {did_you_mean(name, valid)}valid keys: {', '.join(valid)}"


def did_you_mean(given: object, valid: Iterable[str]) -> str:
    """The valid name that is nearest to what was given, as a question; nothing if none is near."""
    near = difflib.get_close_matches(given[:64], list(valid), n=1) if isinstance(given, str) else []
    return f"did you mean {near[0]}? " if near else ""


def _sections(loc: Keys, root: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that `loc` leads to: one, or the members of a union before its tag, or none for a plain value."""
    found: list[type[BaseModel]] = [root]
    named = False  # whether the next part is a name of the user's, and no key of ours
    for part in loc:
        if isinstance(part, int) or part in TAGS:
            continue
        if named:
            named = False
        elif len(found) > 1:
            found = [section for section in found if _tag_of(section) == part]
        else:
            fields = [_fields(section)[str(part)] for section in found if part in _fields(section)]
            found = [section for info in fields for section in _models(info.annotation)]
            named = bool(found) and any(get_origin(info.annotation) is dict for info in fields)
    return found


def _names(sections: list[type[BaseModel]]) -> list[str]:
    return list(dict.fromkeys(name for section in sections for name in _fields(section)))


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """By the names that a recipe gives them."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _models(part)]


def _tag_of(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields["type"].annotation)[0])

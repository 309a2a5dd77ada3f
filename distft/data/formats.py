"""The record formats that are understood, and what they all become: a conversation, or plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distft.data.types import Record
from distft.errors import UserError

Message = dict[str, Any]  # {"role": ..., "content": ...} and whatever else a chat template reads


@dataclass(frozen=True)
class Conversation:
    """Messages in the form chat templates read. Assistant turns before `trained_from` are given, not learned."""

    messages: list[Message]
    trained_from: int = 0


def parse(record: Record, fields: Mapping[str, str]) -> Conversation | str:
    """The conversation or the plain text that a record holds.

    `fields` renames columns, {our name: the column's name}; a format that has a renamed field is preferred.
    Raises UserError where a renamed column is missing, no format fits, or a value has the wrong type.
    """
    values = {name: value for name, value in record.fields.items() if value is not None}
    for ours, column in fields.items():
        if ours not in _NAMES:
            raise UserError(f"data.fields names {ours!r}, which no format has; known are {', '.join(_NAMES)}")
        if column not in record.fields:
            raise UserError(f"{record.where} has no field {column!r} (data.fields.{ours}); it has {_names(record)}")
        values[ours] = record.fields[column]
    for format in sorted(_FORMATS, key=lambda f: fields.keys().isdisjoint(f.names)):
        if all(values.get(name) is not None for name in format.required):
            return format.parse(values, record.where)
    known = "; ".join(" + ".join(f.required) for f in _FORMATS)
    raise UserError(
        f"{record.where} fits no format: it has the fields {_names(record)}, and the formats are {known}; "
        f"rename columns with data.fields"
    )


def _names(record: Record) -> str:
    return ", ".join(map(str, record.fields)) or "(none)"


def _messages(values: Mapping[str, Any], where: str) -> Conversation:
    return Conversation(_message_list(values["messages"], f"{where}: messages"))


def _sharegpt(values: Mapping[str, Any], where: str) -> Conversation:
    return Conversation(_message_list(values["conversations"], f"{where}: conversations"))


def _alpaca(values: Mapping[str, Any], where: str) -> Conversation:
    def text(name: str) -> str:
        return _text(values.get(name) or "", f"{where}: {name}")

    messages = [{"role": "system", "content": text("system")}] if values.get("system") else []
    history = values.get("history") or []
    if not isinstance(history, list | tuple):
        raise UserError(f"{where}: history must be a list of pairs, not {_type(history)}")
    for index, pair in enumerate(history):
        place = f"{where}: history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"{place} must be a pair [instruction, output]")
        messages += [_user(_text(pair[0], place)), _assistant(_text(pair[1], place))]
    instruction = "\n\n".join(part for part in (text("instruction"), text("input")) if part)
    return Conversation([*messages, _user(instruction), _assistant(text("output"))])


def _completion(values: Mapping[str, Any], where: str) -> Conversation:
    def side(name: str, message: Callable[[str], Message]) -> list[Message]:
        value = values[name]
        return [message(value)] if isinstance(value, str) else _message_list(value, f"{where}: {name}")

    prompt = side("prompt", _user)
    return Conversation(prompt + side("completion", _assistant), trained_from=len(prompt))


def _plain(values: Mapping[str, Any], where: str) -> str:
    return _text(values["text"], f"{where}: text")


@dataclass(frozen=True)
class _Format:
    required: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], str], Conversation | str]
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.required + self.optional


_FORMATS = (
    _Format(("messages",), _messages),
    _Format(("conversations",), _sharegpt),
    _Format(("instruction", "output"), _alpaca, optional=("input", "system", "history")),
    _Format(("prompt", "completion"), _completion),
    _Format(("text",), _plain),
)
_NAMES = [name for format in _FORMATS for name in format.names]

_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _message_list(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{where} must be a list of messages that is not empty, not {_type(value)}")
    return [_message(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    """From {role, content} or ShareGPT's {from, value}; other keys (tool_calls, name) stay for the template."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object with role and content, not {_type(value)}")
    # Columnar files give every message all keys, absent ones as None.
    rest = {key: item for key, item in value.items() if item is not None}
    role = rest.pop("role", None) or rest.pop("from", None)
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(f"{where} has the role {role!r}; known are {', '.join(_ROLES)}")
    content = rest.pop("content") if "content" in rest else rest.pop("value", None)
    if content is None and _ROLES[role] == "assistant" and rest.get("tool_calls"):
        content = ""
    return {"role": _ROLES[role], "content": _text(content, f"{where}: content"), **rest}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} must be a string, not {_type(value)}")
    return value


def _type(value: Any) -> str:
    if value is None:
        return "null"
    return "an empty list" if value in ([], ()) else type(value).__name__

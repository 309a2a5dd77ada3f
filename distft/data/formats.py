"""Record formats that distft recognizes, and how each becomes a conversation or plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distft.data.messages import (
    Message,
    Messages,
    assistant,
    follow,
    message_list,
    text,
    tool_list,
    type_name,
    user,
    with_system,
)
from distft.data.records import Record
from distft.errors import UserError


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that the assistant may call.

    Attributes:
        given: indexes of turns of the assistant that are not learned.
        rejected: the record says of itself that it is not to be learned.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    given: frozenset[int] = frozenset()
    rejected: bool = False


def parse(record: Record, fields: Mapping[str, str]) -> Conversation | str:
    """The conversation or the plain text that a record holds.

    `fields` renames columns, {our name: the column's name}; a format that has a renamed field is preferred.
    Raises UserError where a renamed column is missing, no format fits, or a value has the wrong type.
    """
    format, values = _format_of(record, fields)
    if format.parse is None:
        return text(values["text"], f"{record.where}: text")
    messages = format.parse(values, record.where)
    if format is not _ALPACA:
        messages = with_system(messages, values.get("system"), f"{record.where}: system")
    tools = tool_list(values.get("tools"), f"{record.where}: tools")
    return Conversation(messages.all, tools, messages.given, _rejected(values.get("label")))


def unused(record: Record, fields: Mapping[str, str]) -> list[str]:
    """Columns of a record that hold something and that `parse` does not read."""
    format, values = _format_of(record, fields)
    read = {fields.get(name, name) for name in format.names}
    if format.parse is not None and _is_verdict(values.get("label")):
        read.add("label")
    return [column for column, value in record.fields.items() if value is not None and column not in read]


def _format_of(record: Record, fields: Mapping[str, str]) -> tuple[_Format, dict[str, Any]]:
    """The first format that fits, and the values by our names."""
    values = {name: value for name, value in record.fields.items() if value is not None}
    for ours, column in fields.items():
        if ours not in _NAMES:
            raise UserError(f"data.fields: no format has a field {ours!r}; known are {', '.join(_NAMES)}")
        if column not in record.fields:
            raise UserError(f"{record.where} has no field {column!r} (data.fields.{ours}); it has {_names(record)}")
        values[ours] = record.fields[column]
    by_fit = sorted(_FORMATS, key=lambda f: fields.keys().isdisjoint(f.own)) if fields else _FORMATS
    for format in by_fit:
        if all(values.get(name) is not None for name in format.required):
            return format, values
    known = "; ".join(" + ".join(f.required) for f in _FORMATS)
    raise UserError(
        f"{record.where} fits no format: it has the fields {_names(record)}, and the formats are {known}; "
        f"rename columns with data.fields"
    )


def _is_verdict(label: Any) -> bool:
    return isinstance(label, bool) or (isinstance(label, str) and label.lower() in ("true", "false"))


def _rejected(label: Any) -> bool:
    """Whether a record is an example of what not to say, as those for KTO are (Ethayarajh et al. 2024)."""
    return _is_verdict(label) and str(label).lower() == "false"


def prompt_of(record: Record, fields: Mapping[str, str]) -> Conversation | str:
    """What a record asks to be answered, in the form in which it would be learned from; an answer at its end is left
    out, or may be missing. Or a plain text."""
    answers = {
        fields.get(answer, answer): ""
        for answer, question in (("output", "instruction"), ("completion", "prompt"))
        if record.fields.get(fields.get(question, question)) is not None
    }
    asked = Record(record.where, {**record.fields, **answers})
    parsed = parse(asked, {ours: column for ours, column in fields.items() if column in asked.fields})
    if isinstance(parsed, str):
        return parsed
    return without_answer(parsed)


def without_answer(conversation: Conversation) -> Conversation:
    messages = conversation.messages
    return replace(conversation, messages=messages[:-1]) if messages[-1]["role"] == "assistant" else conversation


def asked_by(question: str) -> Conversation:
    """A text as what a user says."""
    return Conversation([user(question)])


def text_of(record: Record, name: str, fields: Mapping[str, str]) -> str:
    """The text in one column of a record.

    Raises:
        UserError: there is none, or it is no text.
    """
    value = value_of(record, name, fields)
    if not isinstance(value, str):
        raise UserError(f"{record.where}: {fields.get(name, name)} must be a text, not {type_name(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{record.where} contains half of a surrogate pair; repair the text") from None
    return value


def value_of(record: Record, name: str, fields: Mapping[str, str]) -> Any:
    """What is in one column of a record; None where the column is there and empty.

    Raises:
        UserError: there is no such column.
    """
    column = fields.get(name, name)
    if column not in record.fields:
        renamed = f"data.fields.{name}" if name in fields else f"data.fields: {{{name}: its name}}"
        raise UserError(f"{record.where} has no column '{column}' ({renamed}); it has {_names(record)}")
    return record.fields[column]


def _names(record: Record) -> str:
    return ", ".join(map(str, record.fields)) or "(none)"


def _messages(values: Mapping[str, Any], where: str) -> Messages:
    return message_list(values["messages"], f"{where}: messages")


def _sharegpt(values: Mapping[str, Any], where: str) -> Messages:
    return message_list(values["conversations"], f"{where}: conversations")


def _alpaca(values: Mapping[str, Any], where: str) -> Messages:
    def cell(name: str) -> str:
        return text(values.get(name) or "", f"{where}: {name}")

    messages = [{"role": "system", "content": cell("system")}] if values.get("system") else []
    history = values.get("history") or []
    if not isinstance(history, list | tuple):
        raise UserError(f"{where}: history must be a list of pairs, not {type_name(history)}")
    for index, pair in enumerate(history):
        place = f"{where}: history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"{place} must be a pair [instruction, output]")
        messages += [user(text(pair[0], place)), assistant(text(pair[1], place))]
    instruction = "\n\n".join(part for part in (cell("instruction"), cell("input")) if part)
    return Messages([*messages, user(instruction), assistant(cell("output"))])


def _completion(values: Mapping[str, Any], where: str) -> Messages:
    prompt = side(values["prompt"], f"{where}: prompt", user)
    return follow(prompt, side(values["completion"], f"{where}: completion", assistant))


def side(value: Any, where: str, message: Callable[[str], Message]) -> Messages:
    """A text as one message, or a list of messages."""
    return Messages([message(value)]) if isinstance(value, str) else message_list(value, where)


@dataclass(frozen=True)
class _Format:
    """Columns of one kind of record; `parse` is None for plain text."""

    required: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], str], Messages] | None
    optional: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[str, ...]:
        """Columns that tell this format from others."""
        return self.required + tuple(name for name in self.optional if name not in _SHARED)

    @property
    def names(self) -> tuple[str, ...]:
        return self.required + self.optional


_SHARED = ("system", "tools")  # what may stand beside any conversation
_ALPACA = _Format(("instruction", "output"), _alpaca, ("input", "history", *_SHARED))
_FORMATS = (
    _Format(("messages",), _messages, _SHARED),
    _Format(("conversations",), _sharegpt, _SHARED),
    _ALPACA,
    _Format(("prompt", "completion"), _completion, _SHARED),
    _Format(("text",), None),
)
_NAMES = list(dict.fromkeys(name for format in _FORMATS for name in format.names))

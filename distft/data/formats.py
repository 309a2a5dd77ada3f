"""Record formats that distft recognizes, and how each becomes a conversation or plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distft.data.records import Record
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
            raise UserError(f"data.fields: no format has a field {ours!r}; known are {', '.join(_NAMES)}")
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


def prompt_of(record: Record, fields: Mapping[str, str]) -> list[Message] | str:
    """The messages that a record asks to be answered, in the form in which it would be learned from; an answer at its
    end is left out, or may be missing. Or a plain text."""
    answers = {
        fields.get(answer, answer): ""
        for answer, question in (("output", "instruction"), ("completion", "prompt"))
        if record.fields.get(fields.get(question, question)) is not None
    }
    asked = Record(record.where, {**record.fields, **answers})
    parsed = parse(asked, {ours: column for ours, column in fields.items() if column in asked.fields})
    if isinstance(parsed, str):
        return parsed
    messages = parsed.messages
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def asked_by(text: str) -> list[Message]:
    """A text as what a user says."""
    return [_user(text)]


@dataclass(frozen=True)
class Pair:
    """Two answers to the same messages."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def pair_of(record: Record, fields: Mapping[str, str]) -> Pair:
    """The pair of answers that a record of preferences holds.

    Each of `chosen` and `rejected` is a text, a message, or messages. What they answer is in `prompt`, `conversations`
    or `messages`; or they are whole conversations, and it is what both begin with.

    Raises:
        UserError: a column is missing or of the wrong type, or the two do not answer the same.
    """
    prompt = _prompt(record, fields)
    chosen, rejected = (_column(record, name, fields, _assistant) for name in ("chosen", "rejected"))
    if prompt is None or chosen[0]["role"] != "assistant":
        both = list(zip(chosen[:-1], rejected[:-1], strict=False))
        shared = chosen[: next((i for i, (one, other) in enumerate(both) if one != other), len(both))]
        if not shared:
            raise UserError(
                f"{record.where}: {'chosen and rejected begin differently' if both else 'the prompt is missing'}; "
                f"give the prompt in a column 'prompt' (data.fields: {{prompt: its name}})"
            )
        if prompt is not None and _said(prompt[-1]) not in map(_said, shared):
            raise UserError(
                f"{record.where}: chosen and rejected are whole conversations without this prompt; correct it"
            )
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[0]["role"] != "assistant":
            raise UserError(
                f"{record.where}: {name} must be an answer of the assistant, not of the {answer[0]['role']}"
            )
    return Pair(prompt, chosen, rejected)


def pair_prompt_of(record: Record, fields: Mapping[str, str]) -> list[Message]:
    """The messages that the answers of a record of preferences are to, or would be where it has none."""
    if all(record.fields.get(fields.get(name, name)) is not None for name in ("chosen", "rejected")):
        return pair_of(record, fields).prompt
    prompt = _prompt(record, {ours: column for ours, column in fields.items() if column in record.fields})
    if prompt is None:
        asked = prompt_of(record, {})
        return asked_by(asked) if isinstance(asked, str) else asked
    return prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt


def _prompt(record: Record, fields: Mapping[str, str]) -> list[Message] | None:
    names = sorted(("prompt", "conversations", "messages"), key=lambda name: name not in fields)
    for name in names:
        if name in fields or record.fields.get(name) is not None:
            return _column(record, name, fields, _user)
    return None


def _column(record: Record, name: str, fields: Mapping[str, str], message: Callable[[str], Message]) -> list[Message]:
    value, where = value_of(record, name, fields), f"{record.where}: {fields.get(name, name)}"
    if isinstance(value, str):
        return [message(value)]
    return [_message(value, where)] if isinstance(value, dict) else _message_list(value, where)


def _said(message: Message) -> tuple[str, str]:
    return message["role"], message["content"].strip()


def text_of(record: Record, name: str, fields: Mapping[str, str]) -> str:
    """The text in one column of a record.

    Raises:
        UserError: there is none, or it is no text.
    """
    value = value_of(record, name, fields)
    if not isinstance(value, str):
        raise UserError(f"{record.where}: {fields.get(name, name)} must be a text, not {_type(value)}")
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

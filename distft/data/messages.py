"""Messages of a conversation, as people's files hold them, in the one form that chat templates are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distft.errors import UserError

Message = dict[str, Any]
"""{"role", "content"} and whatever else a chat template reads. Content is a text, or None of an assistant that only
calls tools. Calls are {"type": "function", "function": {"name", "arguments": object}}, as OpenAI writes them."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")  # roles whose text is the JSON of a call
_VERDICTS = ("weight", "loss_weight", "train", "training", "loss")  # keys that say whether a message is learned
_FINER = ("train_detail", "training_detail")  # ... and which part of it


@dataclass(frozen=True)
class Messages:
    """Messages in order, and the indexes of those of the assistant that are not to be learned."""

    all: list[Message]
    given: frozenset[int] = frozenset()


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def said(message: Message) -> str:
    """What a message says, without the white space around it; of an assistant's without its reasoning."""
    content: str = message["content"] or ""
    return (content.rpartition("</think>")[2] if message["role"] == "assistant" else content).strip()


def reasons(message: Message) -> bool:
    """Whether it holds reasoning beside its content, under one of the names that transformers knows."""
    return any(message.get(key) for key in ("reasoning_content", "thinking", "reasoning"))


def message_list(value: Any, where: str) -> Messages:
    """Raises UserError, naming the place below `where`, unless `value` is a list of messages that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{where} must be a list of messages that is not empty, not {type_name(value)}")
    messages: list[Message] = []
    given = set()
    for index, item in enumerate(value):
        place = f"{where}[{index}]"
        found, learned = _message(item, place)
        is_call = (item.get("role") or item.get("from")) in _CALLS
        if is_call and messages and messages[-1]["role"] == "assistant":  # a call beside what was said before it
            calls = messages[-1].get("tool_calls", []) + found["tool_calls"]
            messages[-1] = {**messages[-1], "tool_calls": calls}
        else:
            messages.append(found)
        if not learned:
            given.add(len(messages) - 1)
    return Messages(messages, frozenset(given))


def one_message(value: Any, where: str) -> Messages:
    return message_list([value], where)


def _message(value: Any, where: str) -> tuple[Message, bool]:
    """From {role, content} or ShareGPT's {from, value}; and whether it is to be learned."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object with role and content, not {type_name(value)}")
    # Columnar files give every message all keys, absent ones as None.
    rest = {key: item for key, item in value.items() if item is not None}
    role = rest.pop("role", None) or rest.pop("from", None)
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(f"{where} has the role {role!r}; known are {', '.join(_ROLES)}")
    learned = _verdict(rest, _ROLES[role], where)
    content = rest.pop("content") if "content" in rest else rest.pop("value", None)
    calls = rest.pop("tool_calls", None)
    if role in _CALLS:
        content, calls = None, _loaded(content, f"{where}: the content of a {role}")
    elif legacy := rest.pop("function_call", None):
        calls = [legacy]
    if calls := tool_calls(calls, where):
        rest["tool_calls"] = calls
    if content is None and _ROLES[role] == "assistant" and (calls or reasons(rest)):
        return {"role": _ROLES[role], "content": None, **rest}, learned
    return {"role": _ROLES[role], "content": text_content(content, f"{where}: content"), **rest}, learned


def _verdict(rest: dict[str, Any], role: str, where: str) -> bool:
    """Takes out of a message what says whether it is learned, and says it."""
    for key in _FINER:
        if rest.pop(key, None):
            raise UserError(f"{where}: {key} is not supported; learn the whole message, or give it {{train: false}}")
    found = {key: rest.pop(key) for key in _VERDICTS if key in rest}
    for key, value in found.items():
        if value not in (0, 1):  # False and True are these
            raise UserError(f"{where}: {key} must be 0 or 1 (or false, true), not {value!r}")
        if value and role != "assistant":
            raise UserError(f"{where}: {key} says to learn what the {role} says; only the assistant's turns can be")
    if len(set(map(bool, found.values()))) > 1:
        raise UserError(f"{where}: {' and '.join(found)} contradict each other")
    return all(found.values())


def text_content(value: Any, where: str) -> str:
    """A text, also where it was cut into parts of type text."""
    if isinstance(value, list | tuple) and value:
        return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))
    return text(value, where)


def _part(value: Any, where: str) -> str:
    if isinstance(value, dict):
        kind = value.get("type", "text")
        if kind != "text":
            raise UserError(f"{where} is a part of the type {kind!r}; only text can be learned")
        value = value["text"] if value.get("text") is not None else value.get("value")
    return text(value, where)


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls in the form above, from theirs or from {"name", "arguments"}; arguments and all may be JSON texts."""
    if isinstance(value, str):
        value = _loaded(value, f"{where}: tool_calls") if value.strip() else None
    if not value:
        return []
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list | tuple):
        raise UserError(f"{where}: tool_calls must be a list of calls, not {type_name(calls)}")
    return [_call(call, f"{where}: tool_calls[{index}]") for index, call in enumerate(calls)]


def _call(value: Any, where: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise UserError(f"{where} must be an object with a name and arguments")
    arguments = _present(function.get("arguments"))
    if isinstance(arguments, str):
        arguments = _loaded(arguments, f"{where}: arguments") if arguments.strip() else {}
    if arguments is not None and not isinstance(arguments, dict):
        raise UserError(f"{where}: arguments must be a JSON object, not {type_name(arguments)}")
    around = {key: item for key, item in value.items() if item is not None}
    for key in ("function", "name", "arguments"):
        around.pop(key, None)
    return {**around, "type": "function", "function": {"name": name, "arguments": arguments or {}}}


def tool_list(value: Any, where: str) -> list[dict[str, Any]] | None:
    """Descriptions of tools as templates are given them, {"type": "function", "function": {...}}; None: there are none.

    `value` is a list of these, or of the inner objects, or its JSON text. Raises UserError where it is none of them.
    """
    if isinstance(value, str):
        value = _loaded(value, where) if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} must be a list of descriptions of functions, not {type_name(value)}")
    return [_tool(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _tool(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = _loaded(value, where)
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{where} must describe a function: an object with a name, a description and parameters")
    found: dict[str, Any] = _present({"type": "function", "function": function} if function is value else value)
    return found


def _present(value: Any) -> Any:
    """Without nulls in objects: columnar files give every object all keys that any of them has."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list | tuple) else value


def _loaded(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}") from None


def text(value: Any, where: str) -> str:
    """Raises UserError unless it is a text."""
    if not isinstance(value, str):
        raise UserError(f"{where} must be a string, not {type_name(value)}")
    return value


def type_name(value: Any) -> str:
    if value is None:
        return "null"
    return "an empty list" if value in ([], ()) else type(value).__name__


def with_system(messages: Messages, system: Any, where: str) -> Messages:
    """The messages after a system message that stood in a column of its own; "" and null are none.

    Raises:
        UserError: it is no text, or the messages begin with another one.
    """
    if system is None or text(system, where) == "":
        return messages
    first = messages.all[0]
    if first["role"] == "system":
        if first["content"].strip() == system.strip():
            return messages
        raise UserError(f"{where} and the first message are two system messages; leave out one")
    return Messages([{"role": "system", "content": system}, *messages.all], frozenset(i + 1 for i in messages.given))


def follow(first: Messages, then: Messages) -> Messages:
    """One after the other; what the assistant says in the first part is given."""
    count = len(first.all)
    given = {i for i, message in enumerate(first.all) if message["role"] == "assistant"}
    return Messages([*first.all, *then.all], frozenset(given | {count + i for i in then.given}))


def texts_of(messages: Sequence[Message]) -> list[str]:
    """All that is text in messages, for a tokenizer to be made of."""
    found = []
    for message in messages:
        calls = json.dumps(message["tool_calls"], ensure_ascii=False) if "tool_calls" in message else ""
        found += [part for part in (message["content"], calls) if part]
    return found


def names_of_calls(message: Mapping[str, Any]) -> list[str]:
    return [call["function"]["name"] for call in message.get("tool_calls", ())]

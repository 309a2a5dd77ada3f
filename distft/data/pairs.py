"""Pairs: records of preferences, two answers to the same messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from distft.data.formats import Conversation, asked_by, prompt_of, side, value_of, without_answer
from distft.data.messages import (
    Message,
    Messages,
    assistant,
    follow,
    one_message,
    said,
    tool_list,
    user,
    with_system,
)
from distft.data.records import Record
from distft.errors import UserError


@dataclass(frozen=True)
class Pair:
    """Two answers to the same messages."""

    prompt: Conversation
    chosen: list[Message]
    rejected: list[Message]

    def answered(self, answer: list[Message]) -> Conversation:
        """The conversation with one of the answers, which alone is learned."""
        both = follow(Messages(self.prompt.messages), Messages(answer))
        return replace(self.prompt, messages=both.all, given=both.given)


def pair_of(record: Record, fields: Mapping[str, str]) -> Pair:
    """The pair of answers that a record of preferences holds.

    Each of `chosen` and `rejected` is a text, a message, or messages. What they answer is in `prompt`, `conversations`
    or `messages`; or they are whole conversations, and it is what both begin with. `system` and `tools` may stand
    beside them.

    Raises:
        UserError: a column is missing or of the wrong type, or the two do not answer the same.
    """
    prompt = _prompt(record, fields)
    chosen, rejected = (_answer(record, name, fields) for name in ("chosen", "rejected"))
    if prompt is None or chosen[0]["role"] != "assistant":
        both = list(zip(chosen[:-1], rejected[:-1], strict=False))
        shared = chosen[: next((i for i, (one, other) in enumerate(both) if one != other), len(both))]
        if not shared:
            raise UserError(
                f"{record.where}: {'chosen and rejected begin differently' if both else 'the prompt is missing'}; "
                f"give the prompt in a column 'prompt' (data.fields: {{prompt: its name}})"
            )
        if prompt is not None and _place(prompt[-1]) not in map(_place, shared):
            raise UserError(
                f"{record.where}: chosen and rejected are whole conversations without this prompt; correct it"
            )
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[0]["role"] != "assistant":
            raise UserError(
                f"{record.where}: {name} must be an answer of the assistant, not of the {answer[0]['role']}"
            )
    return Pair(_beside(record, prompt, fields), chosen, rejected)


def pair_prompt_of(record: Record, fields: Mapping[str, str]) -> Conversation:
    """What the answers of a record of preferences are to, or would be where it has none."""
    if all(record.fields.get(fields.get(name, name)) is not None for name in ("chosen", "rejected")):
        return pair_of(record, fields).prompt
    prompt = _prompt(record, {ours: column for ours, column in fields.items() if column in record.fields})
    if prompt is None:
        asked = prompt_of(record, {})
        return asked_by(asked) if isinstance(asked, str) else asked
    return without_answer(_beside(record, prompt, fields))


def _beside(record: Record, prompt: list[Message], fields: Mapping[str, str]) -> Conversation:
    """The prompt with what stands in columns beside it."""
    system, tools = (record.fields.get(fields.get(name, name)) for name in ("system", "tools"))
    messages = with_system(Messages(prompt), system, f"{record.where}: system").all
    return Conversation(messages, tool_list(tools, f"{record.where}: tools"))


def _prompt(record: Record, fields: Mapping[str, str]) -> list[Message] | None:
    names = sorted(("prompt", "conversations", "messages"), key=lambda name: name not in fields)
    for name in names:
        if name in fields or record.fields.get(name) is not None:
            return _column(record, name, fields, user).all
    return None


def _answer(record: Record, name: str, fields: Mapping[str, str]) -> list[Message]:
    found = _column(record, name, fields, assistant)
    last = len(found.all) - 1
    if last in found.given:
        raise UserError(f"{record.where}: {name} ends with a message that is not to be learned; leave out the record")
    return found.all


def _column(record: Record, name: str, fields: Mapping[str, str], message: Callable[[str], Message]) -> Messages:
    value, where = value_of(record, name, fields), f"{record.where}: {fields.get(name, name)}"
    return one_message(value, where) if isinstance(value, dict) else side(value, where, message)


def _place(message: Message) -> tuple[str, str]:
    return message["role"], said(message)

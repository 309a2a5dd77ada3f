"""What a chat template shows of a conversation, and what it leaves out or shows in another way to predictions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from distft.data.endings import shared
from distft.data.formats import Conversation
from distft.data.messages import Message, names_of_calls, reasons, said
from distft.data.rendering import Rendering
from distft.data.turns import Turn, unshown
from distft.errors import UserError

SILENT = "with turns in which the assistant says nothing, which are not learned"
DIFFERS = "with a prompt in training that is not the one of predictions"
UNSEEN_TOOLS = "with tools that the chat template does not show"
UNSEEN_REASONING = "with reasoning that the chat template does not show"
ENDLESS = "with turns that end without a mark, after which predictions may not stop"
_AROUND = 40  # characters shown on each side of where two prompts part


def is_silent(message: Message) -> bool:
    return not (message["content"] or "").strip() and not message.get("tool_calls") and not reasons(message)


def check_shown(message: Message, turn: Turn, text: str, stop: str) -> None:
    """Raises UserError unless a turn shows what the message says and calls."""
    shown = text[turn.start : turn.end]
    if said(message) not in shown and _words(said(message)) not in _words(shown):
        raise UserError(
            f"the chat template does not show what message {turn.message} says, {_short(said(message))!r}; "
            f"use another one (data.template), or leave out the record"
        )
    calls = names_of_calls(message)
    if calls and stop and stop in shown[shown.find(calls[0]) : shown.rfind(said(message) or stop)]:
        raise UserError(
            f"the chat template shows what message {turn.message} says behind its calls, as a turn of its own; use "
            f"another one (data.template), or leave out the record"
        )
    whole = (message["content"] or "").strip()
    spoken = whole if whole in shown else said(message)  # which may name what it calls
    for name, count in Counter(calls).items():
        if _mentions(name, shown) - _mentions(name, spoken) < count:
            raise unshown(name, turn.message)


def _mentions(name: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def _words(text: str) -> str:
    """The text with every stretch of white space as one space: some templates leave out empty lines."""
    return " ".join(text.split())


def _short(text: str) -> str:
    return text if len(text) <= _AROUND else f"{text[:_AROUND]}..."


def _parting(trained: str, prompt: str) -> str:
    """Where two texts part, in words."""
    at = shared(trained, prompt)
    begin = max(0, at - _AROUND)
    return (
        f"the chat template gives predictions {prompt[begin : at + _AROUND]!r} to answer, "
        f"where training has {trained[begin : at + _AROUND]!r}"
    )


def hidden(conversation: Conversation, template: str, text: str) -> list[str]:
    """What a conversation holds beside content and its text does not, as notes."""
    notes = []
    names = [tool["function"]["name"] for tool in conversation.tools or () if "function" in tool]
    if names and not all(name in text for name in names):
        notes.append(UNSEEN_TOOLS)
    if any(map(reasons, conversation.messages)) and not any(key in template for key in ("reasoning", "thinking")):
        notes.append(UNSEEN_REASONING)
    return notes


def other_prompt(rendering: Rendering, messages: Sequence[Message], learned: Sequence[Turn], text: str) -> str:
    """A sentence if a turn that is learned follows other text than a prediction would, else "".

    The first and the last turn in answer to each role are looked at.
    """
    asked = [(messages[turn.message - 1]["role"], turn) for turn in learned if turn.message]
    looked_at = {*dict(asked).values(), *dict(reversed(asked)).values()}
    for turn in sorted(looked_at, key=lambda turn: turn.message):
        try:
            prompt = rendering.prompt(messages, turn.message)
        except UserError:  # what a system message says alone cannot be answered
            continue
        if prompt != text[: turn.start]:
            return f"message {turn.message}: {_parting(text[: turn.start], prompt)}"
    return ""

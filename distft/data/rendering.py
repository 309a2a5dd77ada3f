"""Rendering: a chat template makes text of messages, which it is given in the form that it takes."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal

from distft.data.formats import Conversation
from distft.data.joining import Joining
from distft.data.messages import Message
from distft.errors import UserError

Span = tuple[int, int]  # characters [start, end)

_ERRORS = (TypeError, ValueError, LookupError, AttributeError)  # beside Jinja's own: templates run code
_CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_NULLS: tuple[Literal["null", "absent", "empty"], ...] = ("null", "absent", "empty")
_PROBE = "distft-looks-for-this"


def on_day(template: str, day: datetime.date) -> str:
    """The template, which sees this day as today whenever it is rendered.

    Raises:
        UserError: it asks for the time in a way that depends on the conversation.
    """
    fixed = _CLOCK.sub(lambda call: json.dumps(day.strftime(call[2]), ensure_ascii=False), template)
    if "strftime_now(" in fixed:
        raise UserError("the chat template calls strftime_now with something else than a text; write the format there")
    return fixed


@dataclass(frozen=True)
class Form:
    """How a template is given what messages may hold.

    Attributes:
        null: content that is None is None to the template, or there is none, or it is "".
        objects: the arguments of a call are an object; else they are its JSON text.
    """

    null: Literal["null", "absent", "empty"] = "null"
    objects: bool = True

    def of(self, message: Message) -> Message:
        if message["content"] is None and self.null != "null":
            message = {key: value for key, value in message.items() if key != "content"}
            if self.null == "empty":
                message["content"] = ""
        if not self.objects and message.get("tool_calls"):
            message = {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        return message


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _json(function["arguments"])}}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, eq=False)
class Renderer:
    """A chat template (Jinja text) and the tokenizer whose special tokens it may use."""

    tokenizer: Any
    text: str

    def fit(self, conversation: Conversation, prompt: bool) -> tuple[Rendering, str]:
        """How to render a conversation's messages, and all of them as text; with `prompt`, ready for an answer.

        Raises:
            UserError: the template rejects the conversation, or shows Python in place of what it holds.
        """
        first: UserError | None = None
        for form, tools in product(self._forms(conversation.messages), self._tools(conversation)):
            rendering = Rendering(self, form, tools)
            try:
                text = rendering(conversation.messages, prompt)
            except UserError as error:
                first = first or error
                continue
            if not self._garbles(rendering, conversation.messages, text, prompt):
                return rendering, text
        raise first or UserError("the chat template shows the arguments of calls in a form that is not JSON")

    def _forms(self, messages: Sequence[Message]) -> list[Form]:
        nulls = _NULLS if any(message["content"] is None for message in messages) else _NULLS[:1]
        calls = [True, False] if any(message.get("tool_calls") for message in messages) else [True]
        return [Form(null, objects) for objects in calls for null in nulls]

    def _tools(self, conversation: Conversation) -> list[list[dict[str, Any]] | None]:
        """Where there are none, some templates want an empty list."""
        return [conversation.tools] if conversation.tools else [None, []]

    def _garbles(self, rendering: Rendering, messages: Sequence[Message], text: str, prompt: bool) -> bool:
        """Whether the text shows "None" for null, or an object as Python prints it, or a text as a JSON string."""
        for message in messages:
            for call in message.get("tool_calls", ()):
                arguments = call["function"]["arguments"]
                shown = str(arguments) if rendering.form.objects else _json(_json(arguments))
                if arguments and shown in text:
                    return True
        if rendering.form.null == "null" and "None" in text and any(message["content"] is None for message in messages):
            emptied = [{**message, "content": message["content"] or ""} for message in messages]
            try:
                return text.count("None") > rendering(emptied, prompt).count("None")
            except UserError:
                return False
        return False

    @cached_property
    def wants_parts(self) -> bool:
        """Whether the template shows only content that is a list of parts."""
        shown = []
        for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
            try:
                text = self.apply([{"role": "user", "content": content}], None, False)
            except UserError:
                text = ""
            shown.append(_PROBE in text and "'text'" not in text)
        return shown == [False, True]

    @cached_property
    def marks_turns(self) -> bool:
        """Whether the template says itself which parts are the assistant's, by {% generation %}."""
        return _GENERATION.search(self.text) is not None

    @cached_property
    def added_tokens(self) -> re.Pattern[str] | None:
        """Matches any token that is no part of running text."""
        texts = sorted((str(token) for token in self.tokenizer.get_added_vocab()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def apply(self, messages: list[Message], tools: list[dict[str, Any]] | None, prompt: bool) -> str:
        joined = self.joining(messages, prompt) if tools is None else None
        return self._shown(messages, tools, prompt) if joined is None else joined

    @cached_property
    def joining(self) -> Joining:
        """How messages become text without Jinja, where the template allows it and there are no tools."""
        return Joining(self.text, lambda messages, prompt: self._shown(messages, None, prompt))

    def _shown(self, messages: list[Message], tools: list[dict[str, Any]] | None, prompt: bool) -> str:
        text: str = self._rendered(messages, tools, prompt, False)[0][0]
        return text

    def blocks(self, messages: list[Message], tools: list[dict[str, Any]] | None, prompt: bool) -> list[Span]:
        """What the template itself marks with {% generation %}.

        In characters: the token mask that apply_chat_template offers is wrong for tokenizers whose offsets leave
        out white space (a turn that begins or ends with it loses or gains tokens, transformers 5.23).
        """
        blocks = self._rendered(messages, tools, prompt, True)[1]
        return [(start, end) for start, end in blocks[0] if start < end]

    def _rendered(self, messages: list[Message], tools: list[dict[str, Any]] | None, prompt: bool, mark: bool) -> Any:
        """By the function below apply_chat_template, which leaves out what is None before a template can see it."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            return render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self.text,
                return_assistant_tokens_mask=mark,
                add_generation_prompt=prompt,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, *_ERRORS) as error:
            raise UserError(f"the chat template rejects the conversation: {error}") from error


@dataclass(frozen=True, eq=False)
class Rendering:
    """How the messages of one conversation are rendered, or the first of them, or some that are changed a little."""

    renderer: Renderer
    form: Form
    tools: list[dict[str, Any]] | None
    _prompts: dict[int, str] = field(default_factory=dict)

    def __call__(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The messages as text; with `prompt`, ready for an answer. Raises UserError if the template rejects them."""
        return self.renderer.apply(self._shaped(messages), self.tools, prompt)

    def prompt(self, messages: Sequence[Message], turn: int) -> str:
        """What a prediction is given to answer as message `turn`. Kept: it tells where a turn starts, and whether it
        follows in training what it follows then."""
        if turn not in self._prompts:
            self._prompts[turn] = self(messages[:turn], True)
        return self._prompts[turn]

    def _shaped(self, messages: Sequence[Message]) -> list[Message]:
        shaped = [self.form.of(message) for message in messages]
        if self.renderer.wants_parts:
            shaped = [_in_parts(message) for message in shaped]
        return shaped

    def blocks(self, messages: Sequence[Message], prompt: bool) -> list[Span]:
        """As `Renderer.blocks`."""
        return self.renderer.blocks(self._shaped(messages), self.tools, prompt)


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if content else message

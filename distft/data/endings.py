"""Endings: what a chat template writes behind an assistant's turn, and what of it the model is to write itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from distft.data.formats import Conversation
from distft.data.messages import Message, said
from distft.data.rendering import Renderer
from distft.errors import UserError

MARK = "distft-marks-this-turn"
OTHER = "distft-marks-what-follows"
_QUESTION: Message = {"role": "user", "content": "?"}
_ANSWER: Message = {"role": "assistant", "content": "."}
_NAME = "look_up"
_CALL: Message = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": {"a": "b"}}}],
}
_RESULT: Message = {"role": "tool", "content": ".", "name": _NAME, "tool_call_id": "call00001"}


def marked(message: Message, mark: str = MARK) -> Message:
    """The message with a mark behind what it says, or behind the name of its last call if it has one."""
    if calls := message.get("tool_calls"):
        function = calls[-1]["function"]
        last = {**calls[-1], "function": {**function, "name": function["name"] + mark}}
        return {**message, "tool_calls": [*calls[:-1], last]}
    return {**message, "content": (message["content"] or "").strip() + mark}


def marked_before(message: Message) -> Message:
    """The message with `OTHER` before what it says; reasoning in its content stays before that."""
    content, words = message["content"] or "", said(message)
    before = content[: content.rfind(words)] if message["role"] == "assistant" else ""
    return {**message, "content": f"{before}{OTHER}{words}"}


def between(text: str) -> str | None:
    """What stands between the first `MARK` and the one `OTHER` behind it; None: it is not so."""
    before, mark, rest = text.partition(MARK)
    middle, other, _ = rest.partition(OTHER)
    # an answer to a call may repeat its name
    return middle.replace(MARK, "") if mark and other and OTHER not in before else None


def shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True, eq=False)
class Endings:
    """Of one template, found with messages of our own."""

    renderer: Renderer

    @cached_property
    def opening(self) -> str:
        """What is added to messages for the assistant to answer."""
        try:
            rendering, plain = self.renderer.fit(Conversation([_QUESTION]), False)
            prompt = rendering([_QUESTION], True)
        except UserError:  # it wants more than this, a system message for instance
            return ""
        return prompt.removeprefix(plain) if prompt.startswith(plain) else ""

    @cached_property
    def _of_text(self) -> tuple[str, str] | None:
        return self._behind([_QUESTION, _ANSWER], _QUESTION)

    @cached_property
    def _of_call(self) -> tuple[str, str] | None:
        return self._behind([_QUESTION, _CALL], _RESULT)

    def _behind(self, messages: list[Message], then: Message) -> tuple[str, str] | None:
        """(`last`, `middle`) as of `parted`; None: the template rejects such a conversation, or does not show it."""
        here = [*messages[:-1], marked(messages[-1])]
        try:
            rendering, text = self.renderer.fit(Conversation(here), False)
            middle = between(rendering([*here, marked_before(then)]))
        except UserError:
            return None
        _, mark, last = text.partition(MARK)
        return (last, middle or "") if mark else None

    @cached_property
    def left_open(self) -> bool:
        """Whether the template ends no turn but the next message's first token does, as <|user|> of GLM-4."""
        if self._of_text is None or self._of_text[0].strip() or self.renderer.added_tokens is None:
            return False
        return self.renderer.added_tokens.match(self._of_text[1].lstrip()) is not None

    @cached_property
    def opener(self) -> str:
        """The token that begins any message, as <|im_start|>; some templates write it behind the last one too."""
        tokens, bos = self.renderer.added_tokens, self.renderer.tokenizer.bos_token
        try:
            _, text = self.renderer.fit(Conversation([marked_before(_QUESTION)]), False)
        except UserError:
            return ""
        found = (match[0] for match in tokens.finditer(text.partition(OTHER)[0])) if tokens else iter(())
        return next((token for token in found if token != bos), "")

    def parted(self, last: str, middle: str) -> tuple[str, str]:
        """(the mark that ends a turn, the rest up to the next message).

        Args:
            last: what stands behind an assistant's content if nothing follows.
            middle: what stands between it and the next message.
        """
        tokens = self.renderer.added_tokens
        marks = [found.span() for found in tokens.finditer(middle)] if tokens else []
        bare = self._bare(last)
        if self.left_open:
            end = next((end for begin, end in marks if begin >= len(bare)), shared(last, middle))
        elif bare and middle.startswith(bare):
            end = len(bare)
        else:
            common = shared(last, middle)
            before = list(takewhile(self._no_opener(middle), marks)) or marks[:1]
            inside = [end for _, end in before if end <= common]
            after = [end for _, end in marks if end > common]
            end = inside[-1] if inside else after[0] if after else common
        begin = next((begin for begin, its_end in marks if its_end == end), end)
        return middle[begin:end], middle[end:]

    def _no_opener(self, text: str) -> Callable[[tuple[int, int]], bool]:
        return lambda span: text[span[0] : span[1]] != self.opener

    def _bare(self, text: str) -> str:
        """Without the white space at its end, nor the beginning of a next message."""
        return text.rstrip().removesuffix(self.opener).rstrip()

    @cached_property
    def of_turn(self) -> str:
        """What ends an answer, as a text: "<|im_end|>", " </s>", or nothing."""
        if self._of_text is None:
            return ""
        return self.addition(_ANSWER) if self.left_open else self._shortened(*self._of_text)

    @cached_property
    def of_turns(self) -> tuple[str, ...]:
        """At what a prediction is to stop: tokens, or texts if no token does it, that end answers and calls."""
        ends = [self.of_turn]
        if self._of_call is not None:
            ends.append(self.addition(_CALL) or self.parted(*self._of_call)[0])
        return tuple(dict.fromkeys(self._last_token(end.strip()) for end in ends if end.strip()))

    def _last_token(self, text: str) -> str:
        """The token that is no part of running text with which a text ends; without one, the text."""
        tokens = self.renderer.added_tokens
        found = [match[0] for match in tokens.finditer(text)] if tokens else []
        return found[-1] if found and text.endswith(found[-1]) else text

    def _shortened(self, last: str, middle: str) -> str:
        """What ends the last turn of a conversation: as it ends others, if the template writes more behind that."""
        bare = self._bare(last)
        stop, head = self.parted(last, middle)
        before = middle.removesuffix(head)
        return before if stop and bare.startswith(before) else bare

    def _behind_last(self, message: Message) -> tuple[str, str] | None:
        return (self._of_call if message.get("tool_calls") else self._of_text) or self._of_text

    def behind_last(self, message: Message) -> str:
        """What stands behind the last turn of a conversation, as far as messages of our own tell."""
        return (self._behind_last(message) or ("", ""))[0]

    def addition(self, message: Message) -> str:
        """What the last turn of a conversation lacks, for the model to learn to stop there."""
        behind, tokens = self._behind_last(message), self.renderer.added_tokens
        if not self.left_open or behind is None or tokens is None:
            return ""
        begin = len(self._bare(behind[0]))
        found = tokens.search(behind[1], begin)
        return behind[1][begin : found.end()] if found else ""

    def of_last(self, message: Message, text: str) -> int:
        """Where the last turn of a conversation ends in the text, `addition` left out."""
        behind = self._behind_last(message)
        if behind is None:
            return len(self._bare(text))
        bare = self._bare(behind[0])
        if not bare or self.left_open:
            return len(text)
        end, more = len(self._bare(text)), bare.removeprefix(self._shortened(*behind))
        return end - len(more) if text.endswith(more, 0, end) else end

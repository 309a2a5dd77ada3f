"""Turns: where in a rendered conversation the assistant speaks, found in a time that grows with its length only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from distft.data.endings import MARK, OTHER, Endings, between, marked, marked_before, shared
from distft.data.messages import Message, names_of_calls, said
from distft.data.rendering import Rendering, Span
from distft.errors import UserError

_Place = Span  # of what a message says, without the white space around it


@dataclass(frozen=True)
class Turn:
    """What the assistant has to write in answer to the messages before: characters [start, end) of the text."""

    message: int
    start: int
    end: int


@dataclass
class Finder:
    """Finds the turns of one conversation.

    A turn starts behind the prompt that predictions get, and ends with the mark that the model is to stop at. A few
    renderings tell the template's own words around messages; a rendering with a mark inside each message tells where
    messages are. So a conversation is rendered about eight times, however many turns it has.

    Args:
        text: all messages, rendered; with `prompt` ready for an answer.
    """

    rendering: Rendering
    endings: Endings
    messages: Sequence[Message]
    text: str
    prompt: bool
    _tails: dict[str, str] = field(default_factory=dict)
    _heads: dict[str, str] = field(default_factory=dict)
    _seams: dict[tuple[str, bool], tuple[str, str]] = field(default_factory=dict)

    def turns(self) -> list[Turn]:
        """In order. Raises UserError if one cannot be found, or the template does not keep them in order."""
        if MARK in self.text or OTHER in self.text:
            raise UserError(f"the text contains {MARK!r} or {OTHER!r}, words that distft needs; leave out the record")
        found: list[Turn] = []
        for i in self._spoken:
            for name in names_of_calls(self.messages[i]):
                if name not in self.text:
                    raise unshown(name, i)
            start = self._start(i, found[-1].end if found else 0)
            found.append(Turn(i, start, self._end(i, start)))
        if any(turn.end < turn.start for turn in found) or any(b.start < a.end for a, b in pairwise(found)):
            raise UserError("the chat template does not keep the messages in order; use another one (data.template)")
        return found

    @cached_property
    def _spoken(self) -> list[int]:
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def _answers(self, i: int) -> bool:
        """Whether turn i follows somebody else's, or a system message that the template lets be answered."""
        if i == 0 or self.messages[i - 1]["role"] != "system":
            return i > 0 and self.messages[i - 1]["role"] != "assistant"
        try:
            return bool(self.rendering.prompt(self.messages, i))
        except UserError:
            return False

    # Where a turn starts

    def _start(self, i: int, floor: int) -> int:
        if not self._answers(i):
            return self._start_unasked(i, floor)
        if i == self._spoken[0]:
            prompt = self.rendering.prompt(self.messages, i)
            if self.text.startswith(prompt):
                return len(prompt)
        role = self.messages[i - 1]["role"]
        if role not in self._tails:
            self._tails[role] = self._tail(i)
        start = self._start_behind(i, self._tails[role], self._heads.get(role))
        if start is None:  # this place differs from the first one of its kind
            self._heads[role] = self._head(i)
            start = self._start_behind(i, self._tail(i), self._heads[role])
        if start is None:
            raise self._lost(i)
        return start

    def _start_behind(self, i: int, *known: str | None) -> int | None:
        """The start of turn i, if one of these stands behind what the message before it says."""
        for one in known:
            for begin in self._after(i - 1):
                if one is not None and self.text.startswith(one, begin):
                    return begin + len(one)
        return None

    def _head(self, i: int) -> str:
        """What stands before an answer in history, where that is not what prompts hold: up to where they part."""
        answers = [marked_before(self.messages[i])]
        if "tool_calls" in self.messages[i]:  # some templates show no content then
            answers.append(marked(self.messages[i], OTHER))
        before, after = [*self.messages[: i - 1], marked(self.messages[i - 1])], self.messages[i + 1 :]
        shown = (between(self.rendering([*before, answer, *after], self.prompt)) for answer in answers)
        head = next((one for one in shown if one is not None), None)
        if head is None:
            raise self._lost(i)
        tail, opening = self._tail(i), self.endings.opening
        end = shared(tail, head)
        if end < len(tail) - len(opening):  # the message before ends in another way if an answer follows
            known = (opening[:length] for length in range(len(opening), 0, -1))
            end = next((head.rfind(one) + len(one) for one in known if one in head), end)
        # "<|assistant|><" of "<|assistant|><think>" and "<|assistant|></think>" ends within a token
        return _WITHIN_TAG.sub("", head[:end])

    def _start_unasked(self, i: int, floor: int) -> int:
        """Of a turn that comes first, or after another one of the assistant's: before what it says."""
        begin, opening = self._place(i)[0], self.endings.opening
        at = self.text.rfind(opening, floor, begin) if opening else -1
        return at + len(opening) if at >= 0 else min(self._before(i))

    def _tail(self, i: int) -> str:
        """What the prompt of turn i holds behind what the message before says."""
        before = [*self.messages[: i - 1], marked(self.messages[i - 1])]
        _, mark, tail = self.rendering(before, True).rpartition(MARK)
        if not mark:
            raise self._lost(i - 1)
        return tail

    # Where a turn ends

    def _end(self, i: int, start: int) -> int:
        if i + 1 == len(self.messages):
            return len(self.text) if self.prompt else self.endings.of_last(self.messages[i], self.text)
        key = self.messages[i + 1]["role"], bool(self.messages[i].get("tool_calls"))
        if key in self._seams and (end := self._end_before(i, start, *self._seams[key])) is not None:
            return end
        next_turn = next((k for k in self._spoken if k > i + 1), len(self.messages))
        for until in (next_turn, len(self.messages)):  # what comes later may change this place, too
            self._seams[key] = self._seam(i, until)
            if (end := self._end_before(i, start, *self._seams[key])) is not None:
                return end
        raise self._lost(i)

    def _end_before(self, i: int, start: int, stop: str, head: str) -> int | None:
        """The end of turn i, if what stands before the next message is this."""
        for begin in self._before(i + 1):
            if self.text.endswith(stop + head, start, begin):
                return begin - len(head)
        return None

    def _seam(self, i: int, until: int) -> tuple[str, str]:
        """(the mark that ends turn i, what the template puts between it and the next message).

        Args:
            until: how many messages to render.
        """
        here = [*self.messages[:i], marked(self.messages[i])]
        after = [marked_before(self.messages[i + 1]), *self.messages[i + 2 : until]]
        together = self.rendering([*here, *after])
        if MARK not in together and (calls := names_of_calls(self.messages[i])):
            raise unshown(calls[-1], i)
        middle = between(together)
        if middle is None:
            raise self._lost(i)
        try:
            last = self.rendering(here).partition(MARK)[2]
        except UserError:  # it wants more than the first messages, a user's for instance
            last = self.endings.behind_last(self.messages[i])
        return self.endings.parted(last, middle)

    # Where messages are

    def _place(self, i: int) -> _Place:
        if i not in self._places:
            raise self._lost(i)
        return self._places[i]

    def _after(self, i: int) -> Iterator[int]:
        """Where message i may end: with the white space at its end, or without, if the template leaves that out."""
        end, content = self._place(i)[1], self.messages[i]["content"] or ""
        space = content[len(content.rstrip()) :]
        if space and self.text.startswith(space, end):
            yield end + len(space)
        yield end

    def _before(self, i: int) -> Iterator[int]:
        """Where message i may begin."""
        begin, content = self._place(i)[0], self.messages[i]["content"] or ""
        space = content[: len(content) - len(content.lstrip())]
        if space and self.text.endswith(space, 0, begin):
            yield begin - len(space)
        yield begin

    @cached_property
    def _places(self) -> dict[int, _Place]:
        """Of the messages next to the assistant's turns."""
        wanted = {i - 1 if self._answers(i) else i for i in self._spoken}
        wanted |= {i + 1 for i in self._spoken if i + 1 < len(self.messages)}
        texts = {i: said(self.messages[i]) for i in sorted(wanted)}
        places, escaped = {}, {}
        for i, (at,) in self._found({i: [_middle(text)] for i, text in texts.items()}).items():
            begin = at - _middle(texts[i])
            # a backslash at the end may have become two
            if self.text.startswith(texts[i], begin) and not texts[i].endswith("\\"):
                places[i] = (begin, begin + len(texts[i]))
            else:
                escaped[i] = texts[i]
        if escaped:  # the template writes them as JSON, say
            edges = self._found({i: [0, len(text)] for i, text in escaped.items()})
            places |= {i: (begin, end) for i, (begin, end) in edges.items()}
        return places

    def _found(self, wanted: dict[int, list[int]]) -> dict[int, list[int]]:
        """Where in the text places in messages are, by message; `wanted`: in characters of what each says."""
        sign = "Zq"
        while sign in self.text:
            sign += "q"
        messages = list(self.messages)
        for i, offsets in wanted.items():
            content = messages[i]["content"] or ""
            base = content.rfind(said(messages[i]))
            for offset in reversed(offsets):
                content = f"{content[: base + offset]}{sign}{i}Z{content[base + offset :]}"
            messages[i] = {**messages[i], "content": content}
        pieces = re.split(f"{sign}([0-9]+)Z", self.rendering(messages, self.prompt))
        found: dict[int, list[int]] = {}
        length = 0
        for piece, index in zip(pieces[::2], [*map(int, pieces[1::2]), -1], strict=True):
            length += len(piece)
            found.setdefault(index, []).append(length)
        del found[-1]
        lost = next((i for i, offsets in wanted.items() if len(found.get(i, ())) != len(offsets)), None)
        if lost is not None:
            raise self._lost(lost)
        if "".join(pieces[::2]) != self.text:
            raise UserError(f"the chat template changes with what messages say; {_WAY_OUT}")
        return found

    def _lost(self, i: int) -> UserError:
        return UserError(f"message {i} cannot be found in the output of the chat template; {_WAY_OUT}")


def _middle(text: str) -> int:
    """A place in the middle, beside no white space: some templates change that."""
    half = len(text) // 2
    return next((k for k in range(half, 0, -1) if not (text[k - 1].isspace() or text[k].isspace())), 0)


def unshown(name: str, message: int) -> UserError:
    """For a call of this name."""
    return UserError(
        f"the chat template does not show the call of {name!r} in message {message}; use another one "
        f"(data.template), or leave out the record"
    )


_WITHIN_TAG = re.compile(r"<[^<>\s]*$")
_WAY_OUT = "mark the assistant's turns with {% generation %} in a template of your own (data.template)"

"""Framed turns: where the assistant speaks in a joined text, told by what the template writes around messages alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from distft.data.endings import MARK, OTHER, Endings
from distft.data.joining import Frame, Joining
from distft.data.messages import Message
from distft.data.turns import Turn

Roles = tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """Of the assistant's message `message`: its turn starts so many characters behind what the message before says, and
    ends so many before what the next one says (None: there is none)."""

    message: int
    behind: int
    before: int | None


@dataclass(frozen=True, eq=False)
class FramedTurns:
    """What `Finder` finds, for conversations in which it would find the same places whatever messages say.

    It looks for what it takes from renderings of a conversation in the conversation's text. If it is part of what the
    template writes between two messages, it is there in any conversation of these roles, and is looked for once.
    """

    joining: Joining
    endings: Endings

    def __call__(self, messages: Sequence[Message], text: str) -> list[Turn] | None:
        """In order; None: a `Finder` has to look.

        Args:
            text: all messages, rendered without tools.
        """
        if not self.joining.joins(messages) or not all(map(_is_simple, messages)) or MARK in text or OTHER in text:
            return None
        roles = tuple(message["role"] for message in messages)
        places = self._places(roles)
        if places is None or not (edges := self._edges(roles, [message["content"] for message in messages])):
            return None
        found, (begins, ends) = [], edges
        for place in places:
            start = ends[place.message - 1] + place.behind
            last = place.before is None
            end = self.endings.of_last(messages[-1], text) if last else begins[place.message + 1] - (place.before or 0)
            if end < start:
                return None
            found.append(Turn(place.message, start, end))
        return found

    def _edges(self, roles: Roles, contents: Sequence[str]) -> tuple[list[int], list[int]] | None:
        """Where in the text messages begin and end; None: the template takes white space away."""
        frame = self._frame(roles, False)
        if frame is None or (frame.trims and any(content != content.strip() for content in contents)):
            return None
        begins, ends, at = [], [], 0
        for constant, content in zip(frame.constants, contents, strict=False):
            begins.append(at + len(constant))
            at = begins[-1] + len(content)
            ends.append(at)
        return begins, ends

    @cached_property
    def _places(self) -> Callable[[Roles], list[_Place] | None]:
        return lru_cache(maxsize=1024)(self._find)

    def _find(self, roles: Roles) -> list[_Place] | None:
        """None: some place depends on what messages say, or the template does not show them in order."""
        between = self._constants(roles, False)
        spoken = [i for i, role in enumerate(roles) if role == "assistant"]
        if between is None or any(i == 0 or roles[i - 1] in ("assistant", "system") for i in spoken):
            return None
        tails: dict[str, str] = {}
        seams: dict[str, tuple[str, str]] = {}
        found = []
        for i, then in zip(spoken, [*spoken, len(roles)][1:], strict=True):
            prompt = self._constants(roles[:i], True)
            if prompt is None or (i == spoken[0] and prompt[:-1] != between[:i]):
                return None
            tail = prompt[-1] if i == spoken[0] else tails.setdefault(roles[i - 1], prompt[-1])
            if not between[i].startswith(tail):
                return None
            if i + 1 == len(roles):
                found.append(_Place(i, len(tail), None))
                continue
            if roles[i + 1] not in seams:
                together, alone = self._constants(roles[:then], False), self._constants(roles[: i + 1], False)
                if together is None or alone is None:
                    return None
                seams[roles[i + 1]] = self.endings.parted(alone[-1], together[i + 1])
            stop, head = seams[roles[i + 1]]
            if not between[i + 1].endswith(stop + head):
                return None
            found.append(_Place(i, len(tail), len(head)))
        return found

    def _constants(self, roles: Roles, prompt: bool) -> list[str] | None:
        """What stands before, between and behind messages of these roles."""
        frame = self._frame(roles, prompt)
        return None if frame is None else frame.constants

    def _frame(self, roles: Roles, prompt: bool) -> Frame | None:
        """Of messages that all say something; None: they are not shown one after the other, or refused."""
        frame = self.joining.frame((roles, (False,) * len(roles), prompt))
        return frame if frame is not None and frame.is_in_order else None


def _is_simple(message: Message) -> bool:
    """Whether what it says is its content, and no reasoning is in it."""
    content: str = message["content"]
    return content != "" and "</think>" not in content and not content.rstrip().endswith("\\")

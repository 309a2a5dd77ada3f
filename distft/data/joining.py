"""Joining: the text of plain messages without Jinja, where a chat template only puts them one behind the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain, zip_longest

from distft.data.messages import Message
from distft.data.oblivious import ROLES, Oblivious, read
from distft.errors import UserError

# A message that stands for any other of its role. Spaces and private characters that no template has of its own.
_SPACE, _BEGIN, _END = "\u2005", "\ue0c0", "\ue0c1"
_PLACE = re.compile(f"({_SPACE}?){_BEGIN}([0-9]+){_END}({_SPACE}?)")
_OWN = re.compile(f"[{_SPACE}{_BEGIN}{_END}]")
_MOST = 64  # messages; longer conversations are seldom alike

Shape = tuple[tuple[str, ...], tuple[bool, ...], bool]  # roles, which of them say nothing, and whether for an answer


@dataclass(frozen=True)
class Frame:
    """What a template writes around messages of one shape.

    Attributes:
        constants: before, between and behind the places of messages.
        places: which message stands in each, and whether without the white space at its ends.
    """

    constants: list[str]
    places: list[tuple[int, bool]]

    def text(self, contents: Sequence[str]) -> str:
        found = [contents[i].strip() if trimmed else contents[i] for i, trimmed in self.places]
        return "".join(chain.from_iterable(zip_longest(self.constants, found, fillvalue="")))

    @cached_property
    def trims(self) -> bool:
        """Whether some message stands in it without the white space at its ends."""
        return any(trimmed for _, trimmed in self.places)

    @cached_property
    def is_in_order(self) -> bool:
        """Whether all messages stand in it, each once, one after the other."""
        return [i for i, _ in self.places] == list(range(len(self.places)))


@dataclass(eq=False)
class Joining:
    """Renders messages that hold a role and a text and nothing else.

    What an oblivious template writes around them depends on roles and on which messages are empty: it is rendered once
    for each such shape, with messages of our own, and what any others say is put into their places.

    Args:
        template: Jinja text.
        render: renders messages; the second argument: ready for an answer. Raises UserError where the template
            rejects them.
    """

    template: str
    render: Callable[[list[Message], bool], str]
    _seen: set[Shape] = field(default_factory=set, init=False)
    _holds: bool = field(default=True, init=False)

    def __call__(self, messages: Sequence[Message], prompt: bool) -> str | None:
        """What `render` returns for them; None: it has to be asked, or rejects them."""
        if not self.joins(messages):
            return None
        contents = [message["content"] for message in messages]
        empty = tuple(not content for content in contents)
        shape = (tuple(message["role"] for message in messages), empty, prompt)
        if (frame := self.frame(shape)) is None:
            return None
        text = frame.text(contents)
        if shape not in self._seen:  # the first of each shape is rendered too: nothing is taken on trust alone
            self._holds = self._holds and self.render(list(messages), prompt) == text
            self._seen.add(shape)
        return text if self._holds else None

    def joins(self, messages: Sequence[Message]) -> bool:
        """Whether it is known what the template does with them: all but reject them, it may be."""
        rules = self._rules
        if rules is None or not self._holds or len(messages) > _MOST:
            return False
        for message in messages:
            content = message.get("content")
            if len(message) != 2 or type(content) is not str or message.get("role") not in ROLES:
                return False
            if content.isspace():  # whether it is empty depends on where the template looks
                return False
            if rules.bare and content != content.strip():
                return False
            if rules.words and any(word in content for word in rules.words):
                return False
        return True

    @cached_property
    def _rules(self) -> Oblivious | None:
        return read(self.template) if _OWN.search(self.template) is None else None

    @cached_property
    def frame(self) -> Callable[[Shape], Frame | None]:
        """Of messages that `joins` lets pass, by their shape; None: the template rejects them."""
        return lru_cache(maxsize=1024)(self._make_frame)

    def _make_frame(self, shape: Shape) -> Frame | None:
        roles, empty, prompt = shape
        space = "" if self._rules is not None and self._rules.bare else _SPACE
        contents = ["" if none else f"{space}{_BEGIN}{i}{_END}{space}" for i, none in enumerate(empty)]
        messages: list[Message] = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            text = self.render(messages, prompt)
        except UserError:
            return None
        found = _PLACE.split(text)
        constants, before, numbers, behind = (found[i::4] for i in range(4))
        if _OWN.search("".join(constants)) or before != behind:
            return None
        return Frame(constants, [(int(n), not space) for n, space in zip(numbers, before, strict=True)])

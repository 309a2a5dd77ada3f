"""Framed turns are those that a `Finder` finds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.endings import MARK, Endings
from distft.data.formats import Conversation
from distft.data.framed_turns import FramedTurns
from distft.data.messages import Message
from distft.data.rendering import Renderer
from distft.data.turns import Finder
from distft.errors import UserError
from tests.unit.data import test_conversations as conversations
from tests.unit.data.chat_templates import BYTES, CHATML, LLAMA3, MISTRAL
from tests.unit.data.test_joining import JOINED, chats

TEMPLATES = {**JOINED, "another end": conversations.OTHER_END}
PIECES = [
    "a",
    "Word ",
    " \n",
    "é🙂",
    "<|im_end|>\n",
    "<|im_start|>assistant\n",
    "</think>",
    "[/INST] ",
    "\\",
    "model\n",
]
said = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)


@st.composite
def talks(draw: st.DrawFn) -> list[Message]:
    """A system message or none, then the user and the assistant in turn, as most conversations are."""
    system = draw(st.booleans())
    roles = ["system"] * system + ["user", "assistant"] * draw(st.integers(1, 4))
    return [{"role": role, "content": draw(said)} for role in roles[: draw(st.integers(1, len(roles)))]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_they_are_where_a_finder_finds_them(name: str) -> None:
    renderer = Renderer(BYTES, TEMPLATES[name])
    endings = Endings(renderer)
    framed = FramedTurns(renderer.joining, endings)

    @given(st.one_of(talks(), chats))
    @settings(max_examples=200, deadline=None)
    def check(messages: list[Message]) -> None:
        try:
            rendering, text = renderer.fit(Conversation(messages), False)
        except UserError:
            return
        found = framed(messages, text) if rendering.tools is None else None
        if found is not None:
            assert found == Finder(rendering, endings, messages, text, False).turns()

    check()
    talk = [user("q"), assistant("a"), user("r"), assistant("b")]
    assert (framed(talk, renderer.apply(talk, None, False)) is None) == (name in ("thinks", "system last"))


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("text", [CHATML, LLAMA3, MISTRAL])
def test_what_is_not_plain_is_left_to_a_finder(text: str) -> None:
    renderer = Renderer(BYTES, text)
    framed = FramedTurns(renderer.joining, Endings(renderer))
    talk = [user("q"), assistant("a"), user("r"), assistant("b")]
    assert len(framed(talk, renderer.apply(talk, None, False)) or ()) == 2
    for other in (
        [{**talk[0], "name": "x"}, *talk[1:]],
        [talk[0], assistant("<think>c</think>a"), *talk[2:]],
        [talk[0], assistant(f"a{MARK}"), *talk[2:]],
        [talk[0], assistant(""), *talk[2:]],
        [talk[0], assistant("C:\\"), *talk[2:]],
    ):
        assert framed(other, renderer.apply(other, None, False)) is None
    padded = [user("q "), *talk[1:]]
    assert (framed(padded, renderer.apply(padded, None, False)) is None) == (text == LLAMA3)

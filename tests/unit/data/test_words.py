"""How a text is divided into words, and that no character of it is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.words import between, word_text, words_in


def texts(text: str, *cuts: int) -> list[str]:
    return [word_text(word) for word in words_in(text, cuts)[0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\u3000", []),
        ("Ada  Lovelace\nin London.", ["Ada", "Lovelace", "in", "London", "."]),
        ("U.S.-based (again)", ["U", ".", "S", ".", "-", "based", "(", "again", ")"]),
        ("3.5% of $10", ["3", ".", "5", "%", "of", "$", "10"]),
        ("彭小军，在2比1", ["彭", "小", "军", "，", "在", "2", "比", "1"]),  # noqa: RUF001
        ("々カﾀ각", ["々", "カ", "ﾀ", "각"]),
        ("ＮＢＡ球队", ["ＮＢＡ", "球", "队"]),  # noqa: RUF001
        ("กิน น้ำ", ["กิ", "น", "น้", "ำ"]),
        ("Mu\u0308ller हिन्दी", ["Mu\u0308ller", "हिन्दी"]),  # a mark belongs to the letter before it
        ("か\u3099ん", ["か\u3099", "ん"]),
        ("\u0301a", ["\u0301a"]),
        ("a👍🏽b", ["a", "👍", "🏽", "b"]),
        ("a\u200bb", ["a\u200bb"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert texts(text) == words


def test_a_cut_ends_a_word_and_is_told_where_there_would_have_been_one() -> None:
    words, forced = words_in("Bremenfahrt, 2 Tage", [0, 6, 11, 19])
    assert [word_text(word) for word in words] == ["Bremen", "fahrt", ",", "2", "Tage"]
    assert forced == {6}
    assert words[:3] == [(0, "", "Bremen"), (6, "", "fahrt"), (11, "", ",")]
    assert words[4] == (15, " ", "Tage")


def test_words_between_are_told_as_the_text_has_them() -> None:
    words, _ = words_in("in New\n York, now")
    assert between(words[1:3]) == "New\n York"
    assert between(words[1:2]) == "New"
    assert between(words) == "in New\n York, now"
    assert between([]) == ""


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.lists(st.integers(-2, 45), max_size=4))
def test_words_are_where_they_say(text: str, cuts: list[int]) -> None:
    words, forced = words_in(text, cuts)
    assert all(text[begin : begin + len(word)] == word and not word[:1].isspace() for begin, _, word in words)
    assert "".join(gap + word for _, gap, word in words) == text.rstrip() or not text.strip()
    assert forced <= set(cuts)
    inner = [(begin, begin + len(word)) for begin, _, word in words]
    assert not any(begin < cut < end for begin, end in inner for cut in cuts)

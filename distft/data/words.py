"""The words of a text: divided at white space, with punctuation, symbols and letters of scripts without spaces alone.

What tags are given to. A word is a place in its text, so whatever is found among words is found in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Literal

Word = tuple[int, str, str]  # where it begins in its text, in characters; the white space before it; the word
_UNSPACED = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"  # Korean: its spaces divide phrases, and names end within them
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"  # Thai, Lao, Burmese, Khmer
)


def words_in(text: str, cuts: Iterable[int] = ()) -> tuple[list[Word], set[int]]:
    """The words of a text, in order, and those of the `cuts` that are inside what would have been one word.

    Args:
        cuts: places at which a word must end, whatever is there.
    """
    natural = _breaks(text)
    forced = {cut for cut in cuts if 0 < cut < len(text)} - natural
    places = sorted(natural | forced)
    words, gap = [], ""
    for begin, end in pairwise(places):
        piece = text[begin:end]
        if piece.isspace():
            gap += piece
        else:
            words.append((begin, gap, piece))
            gap = ""
    return words, forced


def word_text(word: str | Word) -> str:
    return word if isinstance(word, str) else word[2]


def between(words: Sequence[Word]) -> str:
    """What a text says from the first of some words that follow each other to the last of them."""
    return "".join(gap + word for _, gap, word in words).removeprefix(words[0][1]) if words else ""


def _breaks(text: str) -> set[int]:
    """All places where a word or white space begins, and the end of the text."""
    found, before = {0, len(text)}, ""
    for place, character in enumerate(text):
        now = _kind(character)
        if now == "mark" and before not in ("", "space"):
            continue  # an accent, a sign of a vowel: part of the letter before, also where that stands alone
        if now != before or now == "alone":
            found.add(place)
        before = "word" if now == "mark" else now
    return found


@cache
def _kind(character: str) -> Literal["space", "mark", "alone", "word"]:
    category = unicodedata.category(character)
    if character.isspace():
        return "space"
    if category[0] == "M" or category == "Cf":
        return "mark"
    return "alone" if category[0] in "PS" or _UNSPACED.match(character) else "word"

"""Schemes of tags that mark entities, recognised by the labels, and each label's meaning as B-X, I-X, E-X, S-X or O.

IOB1 and IOB2 (Ramshaw and Marcus 1995; Tjong Kim Sang and Veenstra 1999), BIOES, BILOU (Ratinov and Roth 2009), BMES
and BMEWO, which are usual for Chinese (Xue 2003). The mark stands before the type or behind it, divided from it by one
character; small letters are read too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
SCHEMES: Mapping[str, Mapping[str, str]] = {  # mark: its meaning; an earlier scheme is meant where several fit
    "IOB": {"B": "B", "I": "I"},
    "IOE": {"I": "I", "E": "E"},
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "L", "U": "U"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
    "BMEWO": {"B": "B", "M": "I", "E": "E", "W": "S"},
}
DIVIDERS = "-_:./|"
MOST_STRAYS = 0.2  # of the labels; more are no mistake but another kind of labels


@dataclass(frozen=True)
class Scheme:
    """How labels mark entities.

    Attributes:
        name: of the scheme.
        form: an example of a label.
        meanings: of each label: "B-X" and so on, in BILOU also "L-X" and "U-X"; or "O".
    """

    name: str
    form: str
    meanings: Mapping[str, str]

    def plain(self, tags: Iterable[str]) -> list[str]:
        return [self.meanings[tag] for tag in tags]


def recognise(labels: Sequence[str], wanted: str = "auto") -> Scheme | None:
    """The scheme of a label set; None if its labels mark no entities.

    Args:
        wanted: the name of a scheme; "auto": any; "exact": only marks in capitals, before a hyphen; "none".
    """
    if wanted == "none" or not labels:
        return None
    for divider in DIVIDERS if wanted != "exact" else "-":
        for before in (True, False) if wanted != "exact" else (True,):
            found = _read(labels, divider, before, wanted)
            if found is not None:
                return found
    return None


def strays(labels: Sequence[str]) -> tuple[Scheme, list[str]] | None:
    """(the scheme of nearly all labels, those that are not of it); None if there is none of both."""
    if recognise(labels) is not None:
        return None
    most = max(1, int(MOST_STRAYS * len(labels)))
    for name in SCHEMES:
        for divider in DIVIDERS:
            for before in (True, False):
                fitting = [label for label in labels if _meaning(label, divider, before, SCHEMES[name])]
                odd = [label for label in labels if label not in fitting]
                kinds = {label for label in fitting if label.upper() != OUTSIDE}
                if 0 < len(odd) <= most and len(kinds) >= 2 * len(odd) and len(labels) > 2:
                    found = _read(fitting, divider, before, name)
                    if found is not None:
                        return found, odd
    return None


def _read(labels: Sequence[str], divider: str, before: bool, wanted: str) -> Scheme | None:
    names = [wanted] if wanted in SCHEMES else list(SCHEMES)
    for name in names:
        found = {label: _meaning(label, divider, before, SCHEMES[name], wanted != "exact") for label in labels}
        if all(found.values()) and _is_sound(found.values(), usual=divider == "-" and before):
            form = next((label for label in labels if label.upper() != OUTSIDE), labels[0])
            return Scheme(name, form, {label: meaning or OUTSIDE for label, meaning in found.items()})
    return None


def _meaning(label: str, divider: str, before: bool, marks: Mapping[str, str], any_case: bool = True) -> str | None:
    """Of a label read in one way; None if it cannot be read so."""
    if label == OUTSIDE or (any_case and label == "o"):
        return OUTSIDE
    mark, found, kind = label.partition(divider) if before else label.rpartition(divider)[::-1]
    if not found:  # a scheme of one type, which is left out
        mark, kind = label, ""
    elif not kind:
        return None
    meaning = marks.get(mark.upper() if any_case else mark)
    if meaning is None or (mark != mark.upper() and mark != mark.lower()):
        return None
    return f"{meaning}-{kind}" if kind else meaning


def _is_sound(meanings: Iterable[str | None], usual: bool) -> bool:
    """Whether labels that can be read so are meant so: an unusual form must also begin what it goes on with."""
    parts = [(meaning or OUTSIDE).partition("-")[::2] for meaning in meanings]
    kinds = {kind for mark, kind in parts if mark != OUTSIDE}
    if not kinds:
        return usual
    begun = {kind for mark, kind in parts if mark in ("B", "S", "U")}
    return usual or (kinds <= begun and any(mark in ("I", "E", "L") for mark, _ in parts))

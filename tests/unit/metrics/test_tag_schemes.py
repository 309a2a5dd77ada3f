"""Schemes are recognised in the forms that corpora have, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from distft.metrics.tag_schemes import recognise, strays

BMES = "B-NAME M-NAME E-NAME S-NAME O"


@pytest.mark.parametrize(
    ("labels", "name", "meanings"),
    [
        ("O B-PER I-PER", "IOB", "O B-PER I-PER"),
        ("O I-PER I-LOC", "IOB", "O I-PER I-LOC"),  # IOB1
        ("O I-PER E-PER", "IOE", "O I-PER E-PER"),
        ("O B-X I-X E-X S-X", "BIOES", "O B-X I-X E-X S-X"),
        ("O B-X I-X L-X U-X", "BILOU", "O B-X I-X L-X U-X"),
        (BMES, "BMES", "B-NAME I-NAME E-NAME S-NAME O"),
        ("B M E S", "BMES", "B I E S"),  # word segmentation
        ("O B-X M-X E-X W-X", "BMEWO", "O B-X I-X E-X S-X"),
        ("O B_PER I_PER", "IOB", "O B-PER I-PER"),
        ("O B:PER I:PER", "IOB", "O B-PER I-PER"),
        ("O PER-B PER-I", "IOB", "O B-PER I-PER"),
        ("O PER_B PER_M PER_E PER_S", "BMES", "O B-PER I-PER E-PER S-PER"),
        ("O b-per i-per", "IOB", "O B-per I-per"),
        ("o b-per i-per", "IOB", "O B-per I-per"),
        ("O B-a-b I-a-b", "IOB", "O B-a-b I-a-b"),
        ("O B-part_of I-part_of", "IOB", "O B-part_of I-part_of"),
        ("O a-b-B a-b-I", "IOB", "O B-a-b I-a-b"),
        ("O B-I I-I", "IOB", "O B-I I-I"),  # a type that is called like a mark
        ("O B I", "IOB", "O B I"),
        ("O", "IOB", "O"),
    ],
)
def test_a_scheme_is_recognised(labels: str, name: str, meanings: str) -> None:
    found = recognise(labels.split())
    assert found is not None
    assert (found.name, found.plain(labels.split())) == (name, meanings.split())


@pytest.mark.parametrize(
    "labels",
    [
        "NN VB DT",
        "ADJ NOUN X",
        "S_big B_big",  # neither goes on with anything
        "O PER LOC",
        "positive negative",
        "NP-S VP-S",
        "B-X i-X Z-X",
        "0 1 2",
        "",
    ],
)
def test_other_labels_are_of_no_scheme(labels: str) -> None:
    assert recognise(labels.split()) is None


def test_what_a_recipe_wants_decides() -> None:
    assert recognise(BMES.split(), "none") is None
    assert recognise(BMES.split(), "BMES") is not None
    assert recognise(BMES.split(), "BIOES") is None
    assert recognise(["O", "B-X", "I-X"], "exact") == recognise(["O", "B-X", "I-X"])
    for unusual in ("O B_X I_X", "o b-x i-x", "O X-B X-I"):
        assert recognise(unusual.split(), "exact") is None


@pytest.mark.parametrize(
    ("labels", "odd"),
    [
        ("O B-PER I-PER B-LOC I-LOC PERSON", "PERSON"),
        ("O B-PER I-PER B-LOC I-LOC 0", "0"),
        ("O B-PER I-PER B-LOC I-LOC -X-", "-X-"),
        ("O B-PER I-PER B-LOC I-LOC B_ORG", "B_ORG"),
        ("O B-PER I-PER B-LOC I-LOC Q-LOC", "Q-LOC"),
        ("O B_PER I_PER B_LOC I_LOC LOC", "LOC"),
    ],
)
def test_a_stray_tag_is_named(labels: str, odd: str) -> None:
    found = strays(labels.split())
    assert found is not None
    assert found[1] == [odd]


@pytest.mark.parametrize("labels", ["NN VB DT", "O B-X I-X", "a b", "O PER LOC ORG B-X", BMES])
def test_there_is_no_stray_tag(labels: str) -> None:
    assert strays(labels.split()) is None

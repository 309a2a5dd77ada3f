"""Scores against cases worked out by hand, and what must hold of them all."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from distft.metrics.report import as_json
from distft.metrics.scores import (
    MOST_POINTS,
    Confusion,
    Report,
    Words,
    merged,
    plain,
    scheme_of,
    score_answers,
    score_many_labels,
    score_numbers,
    score_one_label,
    score_tags,
    score_texts,
    score_transcripts,
)

LABELS = ["bad", "good"]
SCORERS: dict[str, Callable[..., Report]] = {  # with columns of examples as arguments
    "one_label": partial(score_one_label, labels=["a", "b", "c"]),
    "many_labels": partial(score_many_labels, labels=["a", "b", "c"]),
    "numbers": score_numbers,
    "tags": score_tags,
    "answers": score_answers,
    "texts": score_texts,
    "transcripts": score_transcripts,
}


def example(name: str, chance: random.Random) -> tuple[Any, ...]:
    """One of the examples that a function scores: a value for each of its columns."""
    words = [" ".join(chance.choices(["the", "cat", "sat", "Öl", "日本", ""], k=5)) for _ in range(3)]
    if name == "one_label":
        truth, predicted = chance.choices("abcz", weights=(4, 3, 2, 0), k=1)[0], chance.choice("abcz")
        return truth, predicted, [chance.random() for _ in range(3)]
    if name == "many_labels":
        return chance.sample("abcz", 2), chance.sample("abcz", 1), [chance.random() for _ in range(3)]
    if name == "numbers":
        return chance.gauss(0.0, 1.0), chance.gauss(0.0, 1.0)
    if name == "tags":
        return tuple(chance.choices(["O", "B-X", "I-X", "B-Y", "I-Y"], k=6) for _ in range(2))
    if name == "answers":
        return chance.choice([[], words[:1], words[:2]]), chance.choice([words[0], words[2], ""])
    return words[0], words[1]


@pytest.mark.parametrize("name", SCORERS)
def test_order_of_examples_does_not_matter_and_json_holds_the_report(name: str) -> None:
    chance = random.Random(3)
    examples = [example(name, chance) for _ in range(60)]
    first = SCORERS[name](*map(list, zip(*examples, strict=True)))
    chance.shuffle(examples)
    second = SCORERS[name](*map(list, zip(*examples, strict=True)))
    assert first.scores
    assert first.scores == pytest.approx(second.scores, rel=1e-12)
    assert (first.confusion, first.curves) == (second.confusion, second.curves)
    assert {type(value) for value in first.scores.values()} == {float}
    assert "NaN" not in json.dumps(as_json(first))


@pytest.mark.parametrize("name", SCORERS)
def test_no_examples_have_no_scores(name: str) -> None:
    columns = 3 if name in ("one_label", "many_labels") else 2
    assert SCORERS[name](*([] for _ in range(columns))) == Report({})


def test_of_two_labels_the_second_is_positive() -> None:
    truth, predicted = ["bad", "good", "good", "bad"], ["bad", "good", "bad", "good"]
    good = [0.1, 0.8, 0.4, 0.6]  # of the pairs (good, bad) .8>.1, .8>.6, .4>.1 are right and .4<.6 is wrong
    report = score_one_label([*truth, "good"], [*predicted, "good"], [[1 - p, p] for p in [*good, 0.9]], LABELS)
    assert report.scores == pytest.approx(
        {"accuracy": 3 / 5, "f1": 2 / 3, "macro_f1": (2 / 3 + 1 / 2) / 2, "auc": 5 / 6}
    )
    assert report.confusion == Confusion(LABELS, [[1, 1], [1, 2]])
    assert report.table is not None
    assert report.table.columns == ("precision", "recall", "F1", "support")
    assert dict(report.table.rows) == {
        "bad": [0.5, 0.5, 0.5, 2],
        "good": pytest.approx([2 / 3, 2 / 3, 2 / 3, 3]),
        "macro avg": pytest.approx([7 / 12, 7 / 12, 7 / 12, 5]),
        "weighted avg": pytest.approx([3 / 5, 3 / 5, 3 / 5, 5]),
    }
    assert all(type(row[3]) is int for _, row in report.table.rows)
    curve = report.curves[1]  # of good, by threshold from the highest: right, right, wrong, right, wrong
    assert (curve.name, curve.recall[0], curve.precision[0]) == ("good", 0.0, 1.0)
    assert curve.recall[1:] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert curve.precision[1:] == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5])


def test_of_three_labels_f1_is_weighted_and_auc_of_each_against_the_rest() -> None:
    truth, predicted = ["a", "a", "b", "c"], ["a", "b", "b", "b"]
    probabilities = [[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.3, 0.6, 0.1], [0.1, 0.7, 0.2]]
    report = score_one_label(truth, predicted, probabilities, ["c", "b", "a"][::-1])
    f1 = {"a": 2 / 3, "b": 1 / 2, "c": 0.0}  # a: P 1, R 1/2; b: P 1/3, R 1
    areas = [1.0, 2 / 3, 1.0]  # b: .6 is above .2 and .5, not above .7
    assert report.scores == pytest.approx(
        {
            "accuracy": 1 / 2,
            "f1": (2 * f1["a"] + f1["b"]) / 4,
            "macro_f1": sum(f1.values()) / 3,
            "auc": sum(areas) / 3,
        }
    )


def test_columns_of_probabilities_follow_the_labels_whatever_their_order() -> None:
    truth, probabilities = ["x", "m", "x"], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
    assert score_one_label(truth, truth, probabilities, ["x", "m"]).scores["auc"] == 1.0


def test_a_label_nobody_has_and_one_nobody_knows() -> None:
    report = score_one_label(["a", "b"], ["a", "z"], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], ["a", "b", "never"])
    assert report.scores == pytest.approx({"accuracy": 0.5, "f1": 0.5, "macro_f1": 1 / 3})  # no auc
    assert report.confusion == Confusion(["a", "b", "z"], [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert [curve.name for curve in report.curves] == ["a", "b"]
    alone = score_one_label(["bad", "bad"], ["bad", "bad"], [[0.9, 0.1]] * 2, LABELS)
    assert alone.scores == {"accuracy": 1.0, "f1": 0.0, "macro_f1": 1.0}
    unknown = score_one_label(["new", "bad"], ["good", "bad"], [[0.1, 0.9], [0.9, 0.1]], LABELS)
    assert unknown.scores == pytest.approx({"accuracy": 0.5, "f1": 0.0, "macro_f1": 1 / 3})


def test_curves_have_few_points_and_keep_their_ends() -> None:
    chance = random.Random(0)
    truth = chance.choices(LABELS, k=2000)
    positive = [chance.random() for _ in truth]
    report = score_one_label(truth, truth, [[1 - p, p] for p in positive], LABELS)
    for curve in report.curves:
        assert len(curve.recall) == len(curve.precision) == MOST_POINTS
        assert curve.recall == sorted(curve.recall)
        assert (curve.recall[0], curve.recall[-1]) == (0.0, 1.0)


def test_many_labels() -> None:
    truth, predicted = [["a", "b"], ["a"], [], ["b"]], [["b", "a"], ["b"], [], ["b"]]
    probabilities = [[0.9, 0.8, 0.1], [0.4, 0.6, 0.1], [0.1, 0.2, 0.1], [0.5, 0.9, 0.1]]
    report = score_many_labels(truth, predicted, probabilities, ["a", "b", "never"])
    # a: P 1, R 1/2; b: P 2/3, R 1; together 3 of 4 both ways. AUC of a: 3 of 4 pairs, of b: all
    expected = {"accuracy": 3 / 4, "f1": 3 / 4, "macro_f1": (2 / 3 + 4 / 5) / 2, "auc": (3 / 4 + 1) / 2}
    assert report.scores == pytest.approx(expected)
    assert report.table is not None
    assert [name for name, _ in report.table.rows] == ["a", "b", "micro avg", "macro avg", "weighted avg"]
    assert [curve.name for curve in report.curves] == ["a", "b"]
    assert report.confusion is None


def test_many_labels_of_only_one_or_none() -> None:
    probabilities = [[0.9], [0.2], [0.1]]
    one = score_many_labels([["a"], ["a"], []], [["a"], [], []], probabilities, ["a"])
    assert one.scores == pytest.approx({"accuracy": 2 / 3, "f1": 2 / 3, "macro_f1": 2 / 3, "auc": 1.0})
    none = score_many_labels([[], [], []], [[], [], []], probabilities, ["a"])
    assert none.scores == {"accuracy": 1.0, "f1": 0.0, "macro_f1": 0.0}
    unknown = score_many_labels([["z"], ["a"]], [["a"], ["a"]], [[0.9], [0.8]], ["a"])
    assert unknown.scores == pytest.approx({"accuracy": 0.5, "f1": 0.5, "macro_f1": 1 / 3, "auc": 0.0})


def test_numbers() -> None:
    report = score_numbers([1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0])
    pearson = 25 / (5 * 129) ** 0.5  # sum of products 25, of squares 5 and 129, about the means 2.5 and 7.5
    assert report.scores == pytest.approx(
        {"mse": (4 + 36 + 144) / 4, "mae": 20 / 4, "pearson": pearson, "spearman": 1.0}
    )
    assert score_numbers([1.0, 2.0], [3.0, 3.0]).scores == {"mse": 2.5, "mae": 1.5}
    assert score_numbers([1.0], [3.0]).scores == {"mse": 4.0, "mae": 2.0}
    assert score_numbers([1.0, 2.0], [1.0, 1.0 + 1e-15]).scores["pearson"] == pytest.approx(1.0)


def test_entities_in_iob() -> None:
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"], []]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "B-ORG"], []]
    report = score_tags(truth, predicted)
    # PER: P 1/2, R 1; LOC: P 1, R 1/2; ORG: P 0
    expected = {"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "macro_f1": 4 / 9, "accuracy": 4 / 6}
    assert report.scores == pytest.approx(expected)
    assert report.table is not None
    assert report.table.title == "entities"
    assert dict(report.table.rows) == {
        "LOC": pytest.approx([1.0, 1 / 2, 2 / 3, 2]),
        "ORG": [0.0, 0.0, 0.0, 0],
        "PER": pytest.approx([1 / 2, 1.0, 2 / 3, 1]),
        "micro avg": pytest.approx([2 / 4, 2 / 3, 4 / 7, 3]),
        "macro avg": pytest.approx([1 / 2, 1 / 2, 4 / 9, 3]),
        "weighted avg": pytest.approx([5 / 6, 2 / 3, 2 / 3, 3]),
    }


def test_an_entity_that_begins_wrong_counts_in_iob_only() -> None:
    assert score_tags([["B-X", "I-X", "O"]], [["I-X", "I-X", "O"]]).scores["f1"] == 1.0  # as conlleval.pl has it
    faulty = score_tags([["B-X", "E-X", "S-X"]], [["I-X", "E-X", "S-X"]])
    assert (faulty.scores["precision"], faulty.scores["recall"]) == (1.0, 0.5)
    faulty = score_tags([["B-X", "L-X", "U-Y"]], [["B-X", "L-Y", "U-Y"]])
    assert (faulty.scores["precision"], faulty.scores["recall"]) == (1.0, 0.5)
    # what the data does not tell, the labels do: in BIOES B-X alone is no entity
    assert score_tags([["O"]], [["B-X"]], ["O", "B-X", "I-X", "E-X", "S-X"]).table == score_tags([["O"]], [["O"]]).table


def test_nothing_but_outside() -> None:
    report = score_tags([["O", "O"]], [["O", "O"]])
    assert report.scores == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "macro_f1": 0.0, "accuracy": 1.0}


def test_parts_of_speech_are_scored_word_by_word() -> None:
    report = score_tags([["DET", "NOUN"], ["VERB", "NOUN"]], [["DET", "NOUN"], ["NOUN", "NOUN"]])
    micro = dict.fromkeys(("precision", "recall", "f1", "accuracy"), 3 / 4)
    assert report.scores == pytest.approx(micro | {"macro_f1": (1 + 4 / 5 + 0) / 3})


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        ("O B-PER I-PER", "IOB"),
        ("O I-PER", "IOB"),
        ("B I O", "IOB"),
        ("O", "IOB"),
        ("I-X E-X O", "IOB"),
        ("O B-X I-X E-X S-X", "BIOES"),
        ("O S-X", "BIOES"),
        ("O B-X I-X L-X U-X", "BILOU"),
        ("DET NOUN", None),
        ("O B-X NOUN", None),
        ("B-X E-X L-X", None),
        ("BX O", None),
    ],
)
def test_scheme_is_told_from_the_tags(labels: str, scheme: str | None) -> None:
    assert scheme_of(labels.split()) == scheme


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The Cat", "cat"),
        ("  an\tapple,  a day. ", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("well-known", "wellknown"),
        ("a-b", "ab"),
        ("Ångström 5%", "ångström 5"),
        ("The", ""),
    ],
)
def test_squad_normalisation(answer: str, words: str) -> None:
    assert plain(answer) == words.split()


@pytest.mark.parametrize(
    ("right", "given", "exact", "f1"),
    [
        ("北京大学", "北京大", 0.0, 6 / 7),
        ("北京大学。", "北京大学", 1.0, 1.0),
        ("「北京大学」", "北京大学", 1.0, 1.0),
        ("1998年", "1998 年", 1.0, 1.0),
        ("東京タワー", "タワー", 0.0, 6 / 8),
        ("iPhone手机", "iphone 手机\uff01", 1.0, 1.0),
        ("the cat", "cat.", 1.0, 1.0),  # as SQuAD has it
        ("“cat”", "cat", 0.0, 0.0),  # so too
    ],
)
def test_answers_in_chinese_and_japanese_are_compared_by_characters(
    right: str, given: str, exact: float, f1: float
) -> None:
    assert score_answers([[right]], [given]).scores == pytest.approx({"exact_match": exact, "f1": f1})


def test_answers() -> None:
    report = score_answers([["the big cat", "Cat"], ["in Paris"]], ["a cat!", "Paris, in France"])
    assert report.scores == pytest.approx({"exact_match": 1 / 2, "f1": (1 + 4 / 5) / 2})
    assert report.table is None
    twice = score_answers([["x x y"]], ["x x x"])  # words count as often as they occur
    assert twice.scores == pytest.approx({"exact_match": 0.0, "f1": 2 / 3})


def test_unanswerable_questions() -> None:
    report = score_answers([["cat"], [], []], ["", "", "dog"])
    assert report.scores == pytest.approx({"exact_match": 1 / 3, "f1": 1 / 3})
    assert report.table is not None
    assert dict(report.table.rows) == {"answerable": [0.0, 0.0, 1], "unanswerable": [0.5, 0.5, 2]}
    assert score_answers([[]], ["the"]).scores == {"exact_match": 1.0, "f1": 1.0}  # as the official script has it


def test_texts() -> None:
    same = ["The cat sat on the mat.", "Über Öl schreibt er viel."]
    perfect = score_texts(same, same).scores
    assert perfect == pytest.approx({"bleu": 100.0, "chrf": 100.0, "rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0})
    scores = score_texts(["the cat sat on the mat"], ["the cat is on the mat"]).scores
    # 1-grams 5 of 6, 2-grams 3 of 5, 3-grams 1 of 4, 4-grams 0 of 3, smoothed to 1/2 of one
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25)
    assert scores["rouge1"] == pytest.approx(5 / 6)
    assert scores["rouge2"] == pytest.approx(3 / 5)
    assert scores["rougeL"] == pytest.approx(5 / 6)
    assert set(score_texts(["a", ""], ["", ""]).scores.values()) == {0.0}


def test_rouge_sees_other_letters() -> None:
    assert score_texts(["привет мир"], ["привет всем"]).scores["rouge1"] == pytest.approx(1 / 2)
    assert score_texts(["日本語です"], ["日本語"]).scores["rougeL"] == pytest.approx(6 / 8)
    assert Words().tokenize("हिन्दी, «Café»-Öl_2") == ["हिन्दी", "café", "öl", "2"]
    assert Words().tokenize("e\u0301te\u0301") == Words().tokenize("été")


def test_rouge_of_ascii_is_that_of_rouge_score() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    chance = random.Random(1)
    text = "".join(chance.choice([chr(code) for code in range(128)]) for _ in range(5000))
    assert Words().tokenize(text) == DefaultTokenizer().tokenize(text)


def test_transcripts() -> None:
    references, hypotheses = ["the cat sat", "on", " ", ""], ["the cat sat down", "in", "noise", ""]
    scores = score_transcripts(references, hypotheses).scores
    assert scores == pytest.approx({"wer": 2 / 4, "cer": 6 / 13})  # " down" and "i" for "o"
    assert score_transcripts(["a b"], [""]).scores == {"wer": 1.0, "cer": 1.0}
    assert score_transcripts(["", " \t"], ["x", ""]) == Report({})


NAN, INFINITE = float("nan"), float("inf")


def test_of_a_diverged_model_is_scored_what_can_be() -> None:
    lost, nothing = [[NAN, 0.2], [0.3, 0.8]], [[NAN, NAN], [NAN, NAN]]
    one = score_one_label(LABELS, ["bad", "bad"], lost, LABELS)
    assert one.scores == pytest.approx({"accuracy": 1 / 2, "f1": 0.0, "macro_f1": 1 / 3})  # no auc
    assert one.confusion == Confusion(LABELS, [[1, 0], [1, 0]])
    assert [curve.name for curve in one.curves] == ["good"]
    assert score_one_label(LABELS, ["bad", "bad"], nothing, LABELS) == dataclasses.replace(one, curves=[])
    several = score_many_labels([["bad"], ["good"]], [[], []], lost, LABELS)
    assert several.scores["auc"] == 1.0  # of good alone
    assert [curve.name for curve in several.curves] == ["good"]
    assert set(score_many_labels([["bad"], ["good"]], [[], []], nothing, LABELS).scores) == set(one.scores)


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
def test_numbers_that_are_not_finite_have_no_scores(value: float) -> None:
    assert score_numbers([1.0, 2.0, 3.0], [1.0, value, 3.0]) == Report({})


def test_merged() -> None:
    parts = {"ner": Report({"f1": 0.5}), "topic": Report({"f1": 0.25, "auc": 1.0}), "empty": Report({})}
    report = merged(parts)
    assert report.scores == {"ner.f1": 0.5, "topic.f1": 0.25, "topic.auc": 1.0}
    assert report.parts == parts


@pytest.mark.parametrize("name", ["tags", "answers", "texts", "transcripts", "numbers"])
def test_as_many_predictions_as_examples(name: str) -> None:
    first = example(name, random.Random(0))
    with pytest.raises(ValueError, match=r"zip|inconsistent"):
        SCORERS[name]([first[0]] * 2, [first[1]])

"""Scores: from true and predicted labels to metrics, tables and curves.

The numbers come from the libraries that define them. Of no examples all functions give a report without scores. They
take labels that nothing in the data has, and data whose labels are not among `labels`; the order of the examples does
not matter. 0 / 0 is 0 in a precision or a recall. Labels that are neither right nor predicted anywhere are in no table
and count in no mean over labels. What cannot be computed because a model has diverged is left out.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean  # the same for any order of the numbers, to the last bit
from typing import Any

MOST_POINTS = 200  # of a curve
Strings = Sequence[str]
Lists = Sequence[Sequence[str]]
Matrix = Sequence[Sequence[float]]
Row = tuple[str, list[float | int]]  # name, and a value a column
SPACELESS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")  # kana, Chinese characters


@dataclass(frozen=True)
class ScoreTable:
    title: str
    columns: tuple[str, ...]
    rows: list[Row]


@dataclass(frozen=True)
class Confusion:
    labels: list[str]
    counts: list[list[int]]  # counts[truth][predicted]


@dataclass(frozen=True)
class Curve:
    name: str  # the label; precision and recall are of it against all others
    recall: list[float]  # rising
    precision: list[float]


@dataclass(frozen=True)
class Report:
    scores: dict[str, float]
    table: ScoreTable | None = None
    confusion: Confusion | None = None
    curves: list[Curve] = field(default_factory=list)
    parts: dict[str, Report] = field(default_factory=dict)  # of several tasks


def merged(parts: Mapping[str, Report]) -> Report:
    """Of several tasks: all scores, named "task.score", and the reports themselves."""
    scores = {f"{name}.{score}": value for name, part in parts.items() for score, value in part.scores.items()}
    return Report(scores, parts=dict(parts))


def score_one_label(truth: Strings, predicted: Strings, probabilities: Matrix, labels: Strings) -> Report:
    """One label an example; probabilities [examples, labels].

    Of two labels the second is the positive one: f1 and auc are its own. Of more, f1 is the mean weighted by support
    and auc that of each label against all others, averaged. No auc where `truth` has not all of `labels`, or others,
    or where a probability is not finite.
    """
    if not truth:
        return Report({})
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    names = _occurring(labels, truth, predicted)
    measure = partial(precision_recall_fscore_support, truth, predicted, labels=names, zero_division=0)
    table = _table("labels", names, measure, "macro", "weighted")
    f1 = {name: float(row[2]) for name, row in table.rows}
    chosen = f1.get(labels[1], 0.0) if len(labels) == 2 else f1["weighted avg"]
    scores = {"accuracy": float(accuracy_score(truth, predicted)), "f1": chosen, "macro_f1": f1["macro avg"]}
    areas, curves = _ranked({label: [right == label for right in truth] for label in labels}, probabilities)
    if len(areas) == len(labels) and set(truth) == set(labels):
        scores["auc"] = areas[1] if len(labels) == 2 else fmean(areas)
    pairs = Counter(zip(truth, predicted, strict=True))
    return Report(scores, table, Confusion(names, [[pairs[row, cell] for cell in names] for row in names]), curves)


def score_many_labels(truth: Lists, predicted: Lists, probabilities: Matrix, labels: Strings) -> Report:
    """Any number of labels an example, in any order; probabilities [examples, labels].

    accuracy: share of examples with just the right labels; f1: over all labels of all examples (micro); auc: mean over
    the labels that some examples have and some have not, but for those with a probability that is not finite.
    """
    names = _occurring(labels, *truth, *predicted) or list(labels)
    if not truth or not names:
        return Report({})
    import numpy as np
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(classes=names).fit([names])
    # [examples, labels + 1]: sklearn takes a matrix of one column for one label of two, hence one more, of zeros
    right, given = (np.pad(binarizer.transform(side), ((0, 0), (0, 1))) for side in (truth, predicted))
    measure = partial(precision_recall_fscore_support, right, given, labels=list(range(len(names))), zero_division=0)
    table = _table("labels", names, measure, "micro", "macro", "weighted")
    micro, macro, _ = (float(row[2]) for _, row in table.rows[-3:])
    places = {label: names.index(label) if label in names else -1 for label in labels}
    areas, curves = _ranked({label: right[:, place].tolist() for label, place in places.items()}, probabilities)
    scores = {"accuracy": float(accuracy_score(right, given)), "f1": micro, "macro_f1": macro}
    return Report(scores | ({"auc": fmean(areas)} if areas else {}), table, curves=curves)


def score_numbers(truth: Sequence[float], predicted: Sequence[float]) -> Report:
    """A number an example. No scores where one is not finite, no correlation where all of one side are equal."""
    if not truth or not all(map(math.isfinite, [*truth, *predicted])):
        return Report({})
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    scores = {"mse": mean_squared_error(truth, predicted), "mae": mean_absolute_error(truth, predicted)}
    if len(set(truth)) > 1 and len(set(predicted)) > 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "An input array is nearly constant")
            scores |= {"pearson": pearsonr(truth, predicted)[0], "spearman": spearmanr(truth, predicted)[0]}
    return Report({name: float(value) for name, value in scores.items() if math.isfinite(value)})


def score_tags(truth: Lists, predicted: Lists, labels: Strings = ()) -> Report:
    """A tag for each word of each sentence; an entity is right if its type and all of its words are.

    `labels` and the data tell the scheme. IOB is read as by CoNLL's script (Tjong Kim Sang and De Meulder 2003): I-X
    after anything else begins an entity. In BIOES and BILOU (Ratinov and Roth 2009) only what is without fault is one.
    Tags of no scheme, such as parts of speech, are scored word by word. precision, recall and f1 are over all entities
    (micro), accuracy is of tags.
    """
    rows = [(list(right), list(given)) for right, given in zip(truth, predicted, strict=True) if right or given]
    if not rows:
        return Report({})
    import seqeval.metrics.sequence_labeling as conll
    import sklearn.metrics as sklearn
    from seqeval import scheme
    from seqeval.metrics import v1 as strict

    right, given = [right for right, _ in rows], [given for _, given in rows]
    words = [[tag for row in side for tag in row] for side in (right, given)]
    used = scheme_of([*labels, *words[0], *words[1]])
    if used is None:
        names = _occurring((), *words)
        measure = partial(sklearn.precision_recall_fscore_support, *words, labels=names, zero_division=0)
    elif used == "IOB":
        names = sorted({kind for side in (right, given) for kind, _, _ in conll.get_entities(side)})
        measure = partial(conll.precision_recall_fscore_support, right, given, zero_division=0)
    else:
        form = scheme.BILOU if used == "BILOU" else scheme.IOBES
        names = strict.unique_labels(right, given, form)
        measure = partial(strict.precision_recall_fscore_support, right, given, scheme=form, zero_division=0)
    table = _table("entities" if used else "tags", names, measure, "micro", "macro", "weighted")
    micro, macro, _ = (list(map(float, row)) for _, row in table.rows[-3:])
    scores = {"precision": micro[0], "recall": micro[1], "f1": micro[2], "macro_f1": macro[2]}
    return Report(scores | {"accuracy": float(sklearn.accuracy_score(*words))}, table)


def scheme_of(tags: Iterable[str]) -> str | None:
    """IOB, BIOES or BILOU, with types (B-PER) or without; IOE counts as IOB. None: the tags mark no entities."""
    prefixes = {tag[0] if tag[1:2] in ("", "-") else tag for tag in tags if tag}
    schemes = {"IOB": "IOB", "IOE": "IOB", "BIOES": "BIOES", "BILOU": "BILOU"}
    return next((name for marks, name in schemes.items() if prefixes <= set(marks)), None)


def score_answers(truth: Lists, predicted: Strings) -> Report:
    """SQuAD 2.0's evaluation (Rajpurkar et al. 2018, arXiv:1806.03822), as fractions.

    `truth` has the accepted answers of each question, the nearest counts; none: "" is right. f1 is of the words that
    prediction and answer share.
    """
    if not truth:
        return Report({})
    kinds: dict[str, list[tuple[float, float]]] = {"answerable": [], "unanswerable": []}
    for accepted, given in zip(truth, map(plain, predicted), strict=True):
        rights = [words for words in map(plain, accepted) if words] or [[]]
        pair = float(given in rights), max(_overlap(right, given) for right in rights)
        kinds["answerable" if accepted else "unanswerable"].append(pair)
    exact, f1 = map(fmean, zip(*kinds["answerable"], *kinds["unanswerable"], strict=True))
    rows: list[Row] = [(kind, [*map(fmean, zip(*own, strict=True)), len(own)]) for kind, own in kinds.items() if own]
    table = ScoreTable("questions", ("exact match", "F1", "support"), rows) if kinds["unanswerable"] else None
    return Report({"exact_match": exact, "f1": f1}, table)


def plain(answer: str) -> list[str]:
    """The words that SQuAD compares: in lower case, without ASCII punctuation and English articles.

    Of a text with Chinese or Japanese each of their characters is one, and no other punctuation counts either, as MLQA
    has it (Lewis et al. 2020, arXiv:1910.07475) and CMRC and DRCD have for Chinese.
    """
    if SPACELESS.search(answer):
        answer = "".join(" " if unicodedata.category(letter)[0] == "P" else letter for letter in answer)
        answer = SPACELESS.sub(r" \1 ", answer)
    unmarked = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", unmarked).split()


def score_texts(references: Strings, hypotheses: Strings) -> Report:
    """A text for a text.

    bleu (Papineni et al. 2002) and chrf (Popović 2015), 0 to 100, are of all texts together, by sacrebleu's defaults:
    words as in WMT, case counts. rouge1, rouge2 and rougeL (Lin 2004), 0 to 1, are mean F-measures without stemming.
    """
    if not references:
        return Report({})
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
    rouge = [scorer.score(right, given) for right, given in zip(references, hypotheses, strict=True)]
    corpus = list(hypotheses), [list(references)]
    # force: say nothing of texts that look tokenized
    scores = {"bleu": BLEU(force=True).corpus_score(*corpus).score, "chrf": CHRF().corpus_score(*corpus).score}
    return Report(scores | {name: fmean(pair[name].fmeasure for pair in rouge) for name in scorer.rouge_types})


class Words:
    """Words for ROUGE: of ASCII those of rouge_score, whose own tokenizer drops all other letters.

    A word is a run of letters, marks and digits, in lower case. Chinese and Japanese have no spaces, so each character
    is one (as in Hu et al. 2015, arXiv:1506.05865); Thai and its like must come segmented.
    """

    def tokenize(self, text: str) -> list[str]:
        letters = unicodedata.normalize("NFC", text.lower())
        spaced = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in letters)
        return SPACELESS.sub(r" \1 ", spaced).split()


def score_transcripts(references: Strings, hypotheses: Strings) -> Report:
    """Errors a word (wer) and a character (cer, of spaces too) of all references together; may be above 1.

    Pairs without a word in the reference are left out.
    """
    pairs = [pair for pair in zip(references, hypotheses, strict=True) if pair[0].strip()]
    if not pairs:
        return Report({})
    import jiwer

    right, given = map(list, zip(*pairs, strict=True))
    return Report({"wer": float(jiwer.wer(right, given)), "cer": float(jiwer.cer(right, given))})


def _occurring(labels: Strings, *data: Strings) -> list[str]:
    """The labels that the data has, in their order, and then those that only the data has."""
    found = set().union(*data)
    return [label for label in labels if label in found] + sorted(found.difference(labels))


def _table(title: str, names: Strings, measure: Callable[..., Any], *averages: str) -> ScoreTable:
    """`measure` gives precisions, recalls, F1s and supports in the order of `names`, or one each of an average."""
    each = zip(*measure(average=None), strict=True)
    rows: list[Row] = [(name, [*map(float, row[:3]), int(row[3])]) for name, row in zip(names, each, strict=True)]
    support = sum(row[3] for _, row in rows)
    for average in averages:  # seqeval gives NaN for the mean of nothing
        means = map(float, measure(average=average)[:3]) if names else (0.0, 0.0, 0.0)
        rows.append((f"{average} avg", [*means, support]))
    return ScoreTable(title, ("precision", "recall", "F1", "support"), rows)


def _ranked(hits: Mapping[str, Sequence[bool]], probabilities: Matrix) -> tuple[list[float], list[Curve]]:
    """Areas under the ROC curves of the labels that some examples have and some have not, and precision-recall curves
    of those that some have. A column of `probabilities` belongs to each label of `hits`, which says who has it; one
    that is not finite throughout orders nothing, and its label has neither."""
    import numpy as np
    from sklearn.metrics import precision_recall_curve, roc_auc_score

    areas, curves = [], []
    for (name, hit), likely in zip(hits.items(), np.asarray(probabilities, np.float64).T, strict=True):
        if not np.isfinite(likely).all():
            continue
        if any(hit):
            precision, recall, _ = precision_recall_curve(hit, likely, drop_intermediate=True)  # recall falls
            kept = np.linspace(len(recall) - 1, 0, min(len(recall), MOST_POINTS)).round().astype(int)
            curves.append(Curve(name, recall[kept].tolist(), precision[kept].tolist()))
        if any(hit) and not all(hit):
            areas.append(float(roc_auc_score(hit, likely)))
    return areas, curves


def _overlap(right: Strings, given: Strings) -> float:
    """F1 of words, each as often as it occurs; of no words it is 1 if the other has none either."""
    both = (Counter(right) & Counter(given)).total()
    return 2 * both / (len(right) + len(given)) if right or given else 1.0

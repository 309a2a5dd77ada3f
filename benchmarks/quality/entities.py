"""Scores of entities beside seqeval's: what `distft eval` says of a corpus, and seqeval of what `distft predict` finds.

    python benchmarks/quality/entities.py FOLDER        five minutes on two cores; FOLDER/entities.json

A small random BERT without a CRF is trained for a few hundred steps, so that its tags have faults of all kinds, on

    conll2003      CoNLL columns, IOB2
    resume         a Chinese corpus in BMES
    class-labels   CoNLL-2003 as `datasets` keeps it: lists of words, and numbers with the names of their classes
    spans          CoNLL-2003 as texts with spans, put together here: commas behind words, quotes around them
    cluener        a Chinese corpus of spans as CLUE writes them

The files are read once more here, by code that shares nothing with the product's. Of words seqeval is given the tags as
they are, BMES as BIOES in its strict mode. Of texts it is given a tag for each character, made from the spans that are
right and those that were predicted from the text alone, so that it knows nothing of how a text becomes words.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from commands import DISTFT, call, evaluate, log_of, save, shared, table, train
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOBES

Tagged = tuple[list[str], list[str]]  # words and their tags
Marked = tuple[str, list[tuple[int, int, str]]]  # a text and its spans
MEASURES = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
CLOSING, OPENING = {",", ".", ";", ":", "!", "?", ")", "%"}, {"(", "$"}
NAMES = ["O", *(f"{mark}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for mark in "BI")]


@dataclass(frozen=True)
class Corpus:
    """
    Attributes:
        keys: of the section `data`, beside the files.
        write: the training and the test data into a folder. Returns the files, and what is right of the test data.
        strict: tags are of BIOES, of which seqeval takes only what is without fault.
    """

    write: Callable[[Path], tuple[Path, Path, list[Tagged] | list[Marked]]]
    keys: dict[str, Any]
    strict: bool = False


def columns(path: Path) -> list[Tagged]:
    found: list[Tagged] = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split() for line in block.split("\n") if line.strip() and "-DOCSTART-" not in line]
        if rows:
            found.append(([row[0] for row in rows], [row[-1] for row in rows]))
    return found


def in_columns(*folder: str, train: str, test: str) -> Callable[[Path], tuple[Path, Path, list[Tagged]]]:
    def write(out: Path) -> tuple[Path, Path, list[Tagged]]:
        return shared(*folder, train), shared(*folder, test), columns(shared(*folder, test))

    return write


def with_class_labels(out: Path) -> tuple[Path, Path, list[Tagged]]:
    import datasets

    kinds = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=NAMES)),
        }
    )
    for name in ("train", "test"):
        found = columns(shared("conll2003", f"{name}.txt"))
        rows = {
            "tokens": [words for words, _ in found],
            "ner_tags": [list(map(NAMES.index, tags)) for _, tags in found],
        }
        datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(out / name))
    return out / "train", out / "test", found


def as_spans(out: Path) -> tuple[Path, Path, list[Marked]]:
    for name in ("train", "test"):
        found = [joined(*sentence) for sentence in columns(shared("conll2003", f"{name}.txt"))]
        write_lines(out / f"{name}.jsonl", [{"text": text, "spans": spans} for text, spans in found])
    return out / "train.jsonl", out / "test.jsonl", found


def joined(words: Sequence[str], tags: Sequence[str]) -> Marked:
    """A sentence as people write it, and its entities as spans of it."""
    text, spans = "", list[tuple[int, int, str]]()
    for index, (word, tag) in enumerate(zip(words, tags, strict=True)):
        near = word in CLOSING or word.startswith("'") or (index and words[index - 1] in OPENING)
        text += "" if near or not text else " "
        begin, text = len(text), text + word
        if tag[0] == "I":
            spans[-1] = (spans[-1][0], len(text), tag[2:])
        elif tag[0] == "B":
            spans.append((begin, len(text), tag[2:]))
    return text, spans


def cluener(out: Path) -> tuple[Path, Path, list[Marked]]:
    """Without records in which a span is within another, or begins or ends within a Latin word or a number: there
    `distft eval` divides the word, and `distft predict`, which does not know the span, cannot."""
    for name, file in (("train", "train.json"), ("test", "dev.json")):
        kept, found = [], list[Marked]()
        for record in objects(shared("zh", "cluener", file).read_text(encoding="utf-8")):
            spans = sorted(
                (first, last + 1, kind)
                for kind, surfaces in record["label"].items()
                for places in surfaces.values()
                for first, last in places
            )
            inside = any(within_a_word(record["text"], place) for begin, end, _ in spans for place in (begin, end))
            if not inside and all(one[1] <= other[0] for one, other in pairwise(spans)):
                kept.append(record)
                found.append((record["text"], spans))
        write_lines(out / f"{name}.jsonl", kept)
    return out / "train.jsonl", out / "test.jsonl", found


def within_a_word(text: str, place: int) -> bool:
    around = text[place - 1 : place + 1] if place else ""
    return len(around) == 2 and around.isascii() and around.isalnum()


def objects(text: str) -> Iterator[dict[str, Any]]:
    """One behind the other, over several lines each; the last line of each is a bracket alone."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append(line)
        if line == "}":
            yield json.loads("\n".join(lines))
            lines = []


def write_lines(path: Path, records: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


CONLL = in_columns("conll2003", train="train.txt", test="test.txt")
RESUME = in_columns("zh", "ResumeNER", train="train.bmes", test="test.bmes")
CORPORA = {
    "conll2003": Corpus(CONLL, {"format": "conll"}),
    "resume": Corpus(RESUME, {"format": "conll"}, strict=True),
    "class-labels": Corpus(with_class_labels, {"fields": {"tags": "ner_tags"}}),
    "spans": Corpus(as_spans, {}),
    "cluener": Corpus(cluener, {"fields": {"spans": "label"}}),
}


def recipe(corpus: Corpus, data: Path, test: Path, steps: int) -> dict[str, Any]:
    sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "task": {"type": "token-classification"},
        "model": {
            "init": {"architecture": "bert", "vocab_size": 4000, "config": {**sizes, "max_position_embeddings": 64}}
        },
        # 64: some sentences are cut, and put together again
        "data": {"train": str(data), "eval": str(test), "row_tokens": 64, **corpus.keys},
        "train": {"steps": steps, "lr": 2e-3, "global_batch": 32, "micro_batch": 32, "warmup": 20},
        "engine": {"zero_stage": 2, "dtype": "fp32"},
        "checkpoint": {"every": steps, "keep": 1},
        "track": {"wandb": "off"},
    }


def compare(name: str, folder: Path, steps: int, threads: int) -> dict[str, Any]:
    """Our scores of a corpus, and seqeval's."""
    corpus, run, out = CORPORA[name], folder / name / "run", folder / name / "predictions.jsonl"
    shutil.rmtree(folder / name, ignore_errors=True)
    run.parent.mkdir(parents=True)
    data, test, right = corpus.write(folder / name)
    train(recipe(corpus, data, test, steps), run, threads)
    ours = evaluate(run, test, threads=threads)
    call(log_of(run), DISTFT, "predict", run, "--input", test, "--output", out, threads=threads)
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    truth, predicted = map(list, zip(*map(pair_of, right, found), strict=True))
    how = {"mode": "strict", "scheme": IOBES} if corpus.strict else {}
    theirs = {measure: float(function(truth, predicted, **how)) for measure, function in MEASURES.items()}
    entities = sum(tag[0] in "BS" for tags in truth for tag in tags)
    return {
        "records": len(right),
        "entities": entities,
        "ours": {measure: ours[measure] for measure in MEASURES},
        "seqeval": theirs,
    }


def pair_of(right: Any, found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is right of a record and what was predicted, as tags that seqeval knows."""
    first, second = right
    if isinstance(first, str):
        spans = [(one["start"], one["end"], one["type"]) for one in found["entities"]]
        return of_characters(first, second), of_characters(first, spans)
    return [plain(tag) for tag in second], [plain(tag) for tag in found["tags"]]


def plain(tag: str) -> str:
    return f"I{tag[1:]}" if tag.startswith("M-") else tag


def of_characters(text: str, spans: Sequence[tuple[int, int, str]]) -> list[str]:
    tags = ["O"] * len(text)
    for begin, end, kind in spans:
        tags[begin:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - begin - 1)]
    return tags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpora", nargs="+", choices=list(CORPORA), default=list(CORPORA))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in args.corpora:
        found[name] = compare(name, folder, args.steps, args.threads)
        save(folder / "entities.json", found)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    rows, unequal = [], list[str]()
    for name, one in found.items():
        largest = max(abs(one["ours"][measure] - one["seqeval"][measure]) for measure in MEASURES)
        unequal += [name] if largest else []
        ours, theirs = (f"{one[side]['f1']:.6f}" for side in ("ours", "seqeval"))
        rows.append([name, str(one["records"]), str(one["entities"]), ours, theirs, f"{largest:.1e}"])
    print(table(["corpus", "records", "entities", "F1, distft eval", "F1, seqeval", "largest difference"], rows))
    if unequal:
        sys.exit(f"not equal: {', '.join(unequal)}")


if __name__ == "__main__":
    main()

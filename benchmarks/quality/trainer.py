"""The peer: transformers' Trainer as in its own examples of text and token classification. Writes scores to OUT.

    python benchmarks/quality/trainer.py sst2 MODEL TRAIN TEST OUT --seed N --epochs N --lr RATE

Batches are padded to their longest row; of a word its first token has the label; AdamW, a linear schedule after a tenth
of warm-up. Words that do not fit into 128 tokens are predicted as "O", so that all words are scored.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tasks import BATCH, ROW_TOKENS, TASKS, WARMUP, Example
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

IGNORED = -100


def features(tokenizer: Any, example: Example, ids: dict[str, int]) -> dict[str, Any]:
    """What the examples of transformers make of a text and its label, or of words and their tags."""
    text, label = example
    if isinstance(label, str):
        return {**tokenizer(text, truncation=True, max_length=ROW_TOKENS), "label": ids[label]}
    found = tokenizer(text, truncation=True, max_length=ROW_TOKENS, is_split_into_words=True)
    labels, before = [], None
    for word in found.word_ids():
        labels.append(IGNORED if word is None or word == before else ids[label[word]])
        before = word
    return {**found, "labels": labels}


def scores_of_texts(examples: list[Example], output: Any, labels: list[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    truth, predicted = [label for _, label in examples], [labels[index] for index in output.predictions.argmax(-1)]
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro")),
    }


def scores_of_words(examples: list[Example], output: Any, labels: list[str]) -> dict[str, float]:
    from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

    truth: list[list[str]] = [list(tags) for _, tags in examples]
    predicted = []
    for tags, row, given in zip(truth, output.predictions.argmax(-1), output.label_ids, strict=True):
        found = [labels[index] for index in row[given != IGNORED]]
        predicted.append(found + ["O"] * (len(tags) - len(found)))
    print(classification_report(truth, predicted, digits=4))
    measures = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: float(measure(truth, predicted)) for name, measure in measures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    for name in ("model", "train", "test", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    args = parser.parse_args()
    task = TASKS[args.task]
    train, test = task.read(args.train), task.read(args.test)
    labels = sorted({tag for _, label in train for tag in ([label] if isinstance(label, str) else label)})
    ids = {label: index for index, label in enumerate(labels)}
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    kind = AutoModelForTokenClassification if task.words else AutoModelForSequenceClassification
    model = kind.from_pretrained(args.model, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=ids)
    settings = TrainingArguments(
        output_dir=str(args.out.with_suffix("")),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=args.lr,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=args.seed,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=[features(tokenizer, example, ids) for example in train],
        data_collator=(DataCollatorForTokenClassification if task.words else DataCollatorWithPadding)(tokenizer),
    )
    done = trainer.train()
    output = trainer.predict([features(tokenizer, example, ids) for example in test])
    scores = (scores_of_words if task.words else scores_of_texts)(test, output, labels)
    print(scores)
    found = {"scores": scores, "training_seconds": done.metrics["train_runtime"], "steps": done.global_step}
    args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

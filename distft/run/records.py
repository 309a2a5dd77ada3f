"""Records of a run: what a line of metrics.jsonl is, and which lines count where attempts have repeated steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MetricsRecord = dict[str, Any]
KINDS = ("loss", "eval_loss", "save_seconds", "non_finite", "ranks")  # each record has one of these keys


def kind(record: MetricsRecord) -> str:
    """The one of KINDS that a record is of; "" if it is of none."""
    return next((name for name in KINDS if name in record), "")


def latest(records: Iterable[MetricsRecord]) -> list[MetricsRecord]:
    """One gapless curve: each kind of each step once, as it was recorded last.

    A step that is trained again makes void what was recorded of later steps before it: the attempt that recorded
    them was lost, or went back to a checkpoint.
    """
    kept: dict[tuple[str, int], MetricsRecord] = {}
    trained = 0  # the newest step with a loss
    for record in records:
        name, step = kind(record), int(record["step"])
        if name == "loss":
            if step <= trained:
                kept = {key: value for key, value in kept.items() if key[1] <= step}
            trained = step
        kept.pop((name, step), None)
        kept[name, step] = record
    return list(kept.values())

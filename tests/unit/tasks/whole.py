"""What tests of tasks that cut whole documents have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distft.data.corpus import CacheFolder, Corpus
from distft.data.cutting import cut_to_rows
from distft.data.records import Cuts, Encoder
from distft.data.sources import Source
from distft.data.token_cache import build_cache


def documents_in(corpus: Corpus) -> list[tuple[Any, ...]]:
    found = [corpus.document(i) for i in range(len(corpus))]
    return [(d.size, d.targets, d.record, {n: (v.dtype, v.tolist()) for n, v in d.columns.items()}) for d in found]


def check_cut(folder: Path, records: Sequence[dict[str, Any]], encoder: Encoder, cut: Any) -> Path:
    """Whole documents that are cut are those of an encoder that cuts. Returns the folder of the whole ones."""
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def build(using: Encoder) -> Path:
        source = Source(str(folder / "a.jsonl"))
        return build_cache(source, using, str(folder / "cache"), lambda: None, lambda done: None)

    assert isinstance(encoder, Cuts)
    whole, expected = build(encoder.uncut), Corpus.open(build(encoder))
    found = Corpus(cut_to_rows(CacheFolder.open(whole), whole, cut))
    assert documents_in(found) == documents_in(expected)
    assert found.meta == expected.meta
    return whole

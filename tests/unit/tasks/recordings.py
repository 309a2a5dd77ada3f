"""What tests of tasks that hear have in common."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]

from distft.data.corpus import Corpus
from distft.data.records import Encoder
from distft.data.sources import Source
from distft.data.token_cache import build_cache


def check_changed_recording(folder: Path, encoder: Encoder, texts: tuple[str, str]) -> None:
    """A recording that changed behind the same path is heard, and the one before is found when it is back."""
    files = [folder / "one.wav", folder / "two.wav"]
    records = [{"audio": file.name, "text": text} for file, text in zip(files, texts, strict=True)]
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def built() -> tuple[Path, list[bytes]]:
        source = Source(str(folder / "a.jsonl"))
        found = build_cache(source, encoder, str(folder / "cache"), lambda: None, lambda done: None)
        corpus = Corpus.open(found)
        return found, [corpus.document(i)["samples"].tobytes() for i in range(len(corpus))]

    chance = np.random.default_rng(0)
    for file in files:
        soundfile.write(file, chance.integers(-999, 999, 8000).astype(np.int16), 16000)
    content = files[1].read_bytes()
    before, heard = built()
    soundfile.write(files[1], chance.integers(-999, 999, 8000).astype(np.int16), 16000)
    assert len(files[1].read_bytes()) == len(content)
    after, others = built()
    assert after != before
    assert [one == other for one, other in zip(heard, others, strict=True)] == [True, False]
    files[1].write_bytes(content)
    assert built() == (before, heard)

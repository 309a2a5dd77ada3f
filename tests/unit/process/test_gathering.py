from collections.abc import Iterator

import pytest
import torch
import torch.distributed as td

from distft.process import distributed


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What a second rank sends, piece by piece."""
    pieces: list[bytes] = []

    def gather(parts: list[torch.Tensor], mine: torch.Tensor) -> None:
        parts[0].copy_(mine)
        parts[1].copy_(torch.frombuffer(bytearray(pieces.pop(0).ljust(len(mine))), dtype=torch.uint8))

    monkeypatch.setattr(td, "get_world_size", lambda: 2)
    monkeypatch.setattr(td, "all_gather", gather)
    yield pieces
    assert pieces == []


@pytest.mark.parametrize(("mine", "its"), [("", ""), ("ä\x00b", ""), ("", "long  "), ("é" * 3000, "\u2028")])
def test_texts_of_any_length_come_by_rank(other: list[bytes], mine: str, its: str) -> None:
    encoded = its.encode()
    other += [len(encoded).to_bytes(8, "little"), encoded]
    assert distributed.gather_text(mine) == [mine, its]


def test_bytes_of_all_values_come_back(other: list[bytes]) -> None:
    every = bytes(range(256))
    other.append(every[::-1])
    assert distributed.gather_bytes(every) == [every, every[::-1]]

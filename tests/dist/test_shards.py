"""Models made in shards beside those that transformers loads, on 2 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dist.launch import run_ranks

MODULE = "tests.dist.shards"


def test_made_in_shards_is_bit_for_bit_what_transformers_loads(tmp_path: Path) -> None:
    """ZeRO 3: weights, masters, buffers, and the losses of three steps; a decoder, and an encoder with a fresh head."""
    run_ranks(MODULE, 2, "equal", str(tmp_path), "--only", "decoder, LoRA", "fresh head, full")


@pytest.mark.long
def test_every_way_to_make_a_model_in_shards(tmp_path: Path) -> None:
    """The same, full and LoRA, fp32 and bf16; with tied weights, an encoder-decoder, and several tasks."""
    run_ranks(MODULE, 2, "equal", str(tmp_path))


@pytest.mark.long
def test_what_a_checkpoint_holds_is_not_read_from_the_base_again(tmp_path: Path) -> None:
    """Full fine-tuning under ZeRO 0, 2 and 3, a part of the layers, LoRA: continued, bit for bit."""
    run_ranks(MODULE, 2, "resume", str(tmp_path))


def test_ranks_share_the_reading_of_a_digest(tmp_path: Path) -> None:
    run_ranks(MODULE, 2, "digest", str(tmp_path))

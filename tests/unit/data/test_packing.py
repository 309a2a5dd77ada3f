import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.order import hashes, order, stable_order
from distft.data.packing import bucket, one_per_row, pack


def best_fit_decreasing(lengths, row_tokens):
    """The textbook algorithm, one document at a time: tokens in each row."""
    left = []
    for length in sorted(lengths, reverse=True):
        fits = [i for i, room in enumerate(left) if room >= length]
        if fits:
            left[min(fits, key=lambda i: left[i])] -= length
        else:
            left.append(row_tokens - length)
    return sorted(row_tokens - room for room in left)


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 40), st.integers(-(2**63), 2**64))
def test_pack_is_best_fit_decreasing_and_loses_nothing(data, row_tokens, seed):
    lengths = data.draw(st.lists(st.integers(1, row_tokens), max_size=120))
    rows = pack(np.array(lengths, dtype=np.int32), row_tokens, seed)
    assert sorted(rows.documents.tolist()) == list(range(len(lengths)))
    filled = [sum(lengths[d] for d in rows.row(i)) for i in range(len(rows))]
    assert sorted(filled) == best_fit_decreasing(lengths, row_tokens)
    assert rows.offsets.dtype == rows.documents.dtype == np.int64
    again = pack(np.array(lengths, dtype=np.int32), row_tokens, seed)
    assert np.array_equal(rows.documents, again.documents)
    assert np.array_equal(rows.offsets, again.offsets)


def test_seed_decides_which_equal_documents_meet():
    lengths = np.full(64, 10, dtype=np.int32)
    first, second = (pack(lengths, 40, seed).documents.tolist() for seed in (1, 2))
    assert first != second
    assert first[:8] != list(range(8))


def test_pack_is_pinned():
    lengths = np.array([5, 3, 3, 8, 2, 2, 7, 1], dtype=np.int32)
    rows = pack(lengths, 8, 0)
    assert [rows.row(i).tolist() for i in range(len(rows))] == [[3], [6, 7], [0, 2], [1, 4, 5]]


@pytest.mark.parametrize(
    ("row_tokens", "put", "pinned"),
    [
        (500, pack, "9c602f91a629"),
        (500, bucket, "ce62f7f83df0"),
        (200_000, pack, "8cddc540c038"),
        (200_000, bucket, "529344a1ad71"),
    ],
)
def test_rows_of_many_documents_are_pinned(row_tokens, put, pinned):
    """A run that goes on has to find the rows that it was begun with, whatever they are computed by."""
    lengths = (hashes(7, 0, 5000) % np.uint64(row_tokens) + np.uint64(1)).astype(np.int32)
    rows = put(lengths, row_tokens, 3)
    found = hashlib.sha256(rows.offsets.astype("<i8").tobytes() + rows.documents.astype("<i8").tobytes())
    assert found.hexdigest()[:12] == pinned


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 40), st.integers(-(2**63), 2**64))
def test_bucket_keeps_its_budget_and_loses_nothing(data, row_tokens, seed):
    sizes = data.draw(st.lists(st.integers(1, row_tokens), max_size=120))
    rows = bucket(np.array(sizes, dtype=np.int32), row_tokens, seed)
    assert sorted(rows.documents.tolist()) == list(range(len(sizes)))
    assert rows.offsets.dtype == rows.documents.dtype == np.int64
    longest = [max(sizes[d] for d in rows.row(i)) for i in range(len(rows))]
    counts = [len(rows.row(i)) for i in range(len(rows))]
    assert all(count > 0 for count in counts)
    assert all(size * count <= row_tokens for size, count in zip(longest, counts, strict=True))
    # no row but the last has room for one more, and none has anything longer than what the row before it has
    assert all(size * (count + 1) > row_tokens for size, count in list(zip(longest, counts, strict=True))[:-1])
    assert [sizes[d] for d in rows.documents] == sorted(sizes, reverse=True)
    again = bucket(np.array(sizes, dtype=np.int32), row_tokens, seed)
    assert np.array_equal(rows.documents, again.documents)
    assert np.array_equal(rows.offsets, again.offsets)


def test_seed_decides_which_equal_documents_meet_in_a_bucket():
    sizes = np.full(64, 10, dtype=np.int32)
    first, second = (bucket(sizes, 40, seed).documents.tolist() for seed in (1, 2))
    assert first != second
    assert first[:8] != list(range(8))


def test_bucket_is_pinned():
    sizes = np.array([5, 3, 3, 8, 2, 2, 7, 1], dtype=np.int32)
    rows = bucket(sizes, 8, 0)
    assert [rows.row(i).tolist() for i in range(len(rows))] == [[3], [6], [0], [2, 1], [4, 5, 7]]


@pytest.mark.parametrize("length", [0, 9])
@pytest.mark.parametrize("put", [pack, bucket])
def test_lengths_out_of_range_are_refused(put, length):
    with pytest.raises(ValueError, match=r"1\.\.8"):
        put(np.array([3, length], dtype=np.int32), 8, 0)


def test_no_documents_are_no_rows():
    assert len(pack(np.array([], dtype=np.int32), 8, 0)) == 0
    assert len(bucket(np.array([], dtype=np.int32), 8, 0)) == 0
    assert len(one_per_row(0)) == 0


def test_one_per_row():
    rows = one_per_row(3)
    assert [rows.row(i).tolist() for i in range(len(rows))] == [[0], [1], [2]]


def test_order_is_pinned():
    """These values are part of what makes a run repeatable: they must never change."""
    assert order(0, 0, 10).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert order(1234567, 3, 10).tolist() == [9, 3, 2, 0, 7, 1, 4, 5, 6, 8]
    assert order(-1, 2, 10).tolist() == [1, 4, 6, 3, 5, 9, 8, 0, 7, 2]


@pytest.mark.parametrize("largest", [0, 9, 2**16 - 1, 2**16, 2**31 - 1])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_stable_order_is_stable(largest, dtype):
    keys = np.random.default_rng(0).integers(0, largest + 1, 3000).astype(dtype)
    keys[::3] = keys[0]
    assert np.array_equal(stable_order(keys), np.argsort(keys, kind="stable"))
    assert stable_order(keys[:0]).tolist() == []


def test_splitmix64_is_the_published_one():
    """First outputs for seed 1234567, from the reference implementation in C (prng.di.unimi.it)."""
    from distft.data.order import _GOLDEN, _MASK, _mix

    states = np.array([(1234567 + i * _GOLDEN) & _MASK for i in (1, 2, 3)], dtype=np.uint64)
    assert _mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(-(2**63), 2**64), st.integers(0, 1000), st.integers(0, 300))
def test_order_is_a_permutation(seed, epoch, n):
    permutation = order(seed, epoch, n)
    assert permutation.dtype == np.int64
    assert sorted(permutation.tolist()) == list(range(n))


def test_order_differs_by_seed_and_epoch_and_is_even():
    orders = [order(seed, epoch, 100).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(o) for o in orders}) == 16
    first = np.bincount([order(0, epoch, 10)[0] for epoch in range(5000)], minlength=10)
    assert 400 < first.min() <= first.max() < 600  # 500 expected, standard deviation 21

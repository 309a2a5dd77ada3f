"""The order of blocks: every block once an epoch, and windows where the closed form says."""

from __future__ import annotations

import numpy as np
import pytest

from distft.data import block_order
from distft.data.block_order import LARGEST, BlockOrder
from distft.data.order import order


def test_windows_grow_and_follow_each_other() -> None:
    assert [block_order.size(k) for k in range(7)] == [1, 2, 4, 8, 16, 16, 16]
    for number in range(50):
        assert block_order.begin(number) == sum(map(block_order.size, range(number)))
    assert block_order.begin(10**9) == 15 + LARGEST * (10**9 - 4)


@pytest.mark.parametrize(("blocks", "lanes"), [(1, 1), (7, 3), (100, 16), (640, 4)])
def test_windows_of_all_lanes_are_the_epochs_one_after_another(blocks: int, lanes: int) -> None:
    found = BlockOrder(5, blocks, lanes)
    stream = [block for number in range(7) for lane in range(lanes) for block in found.window(lane, number)]
    assert len(stream) == lanes * block_order.begin(7)
    for epoch in range(len(stream) // blocks):
        assert stream[epoch * blocks : (epoch + 1) * blocks] == order(5, epoch, blocks).tolist()
    assert (
        stream[len(stream) // blocks * blocks :]
        == order(5, len(stream) // blocks, blocks)[: len(stream) % blocks].tolist()
    )


def test_a_window_far_away_costs_no_more() -> None:
    found = BlockOrder(0, 1000, 8)
    asked: list[int] = []
    made = found._make_order
    found._order = lambda epoch: (asked.append(epoch), made(epoch))[1]  # type: ignore[assignment, func-returns-value]
    found.window(3, 10**9)
    assert len(set(asked)) == 1


def test_rows_of_windows_come_in_orders_of_their_own() -> None:
    found = BlockOrder(0, 1000, 8)
    orders = [found.rows(lane, number, 50).tolist() for lane in range(8) for number in range(4)]
    assert len({str(one) for one in orders}) == len(orders)
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert np.abs([np.corrcoef(one, range(50))[0, 1] for one in orders]).mean() < 0.3

"""How many ranks hold a model together, and what is said when one of them has ended."""

from __future__ import annotations

import pytest

from distft.errors import RunFailed, UserError
from distft.inference.groups import check
from distft.inference.size import fewest
from distft.inference.workers import check_codes
from distft.model.tensor_parallel import own_name


@pytest.mark.parametrize(
    ("weights", "room", "ranks", "size"),
    [(80, 100, 8, 1), (91, 100, 8, 2), (190, 100, 6, 3), (190, 100, 4, 4), (9000, 100, 8, 8), (9000, 100, 1, 1)],
)
def test_as_few_as_have_room_for_it(weights: int, room: int, ranks: int, size: int) -> None:
    assert fewest(weights, room, ranks) == size


def test_groups_come_out_even() -> None:
    check(2, 6)
    with pytest.raises(UserError, match="3 ranks do not make groups of 2"):
        check(2, 3)


def test_a_rank_that_was_killed_is_named_and_one_that_failed_has_said_why() -> None:
    check_codes([0, None])
    with pytest.raises(RunFailed, match=r"rank 1 was killed \(SIGKILL"):
        check_codes([1, -9])
    with pytest.raises(SystemExit) as ended:
        check_codes([None, 2])
    assert ended.value.code == 2


def test_trained_weights_are_found_in_the_base() -> None:
    assert own_name("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert own_name("base_model.model.lm_head.modules_to_save.default.weight") == "lm_head.weight"

from __future__ import annotations

from distft.plan.tape import Tape, Value


def test_what_is_kept_twice_takes_its_bytes_once() -> None:
    tape, x = Tape(), Value(10, learns=True)
    y = tape.run([x], 20, [x])
    tape.run([x, y], 30, [x, y])
    assert tape.kept() == 30
    assert tape.kept([x]) == 20


def test_nothing_is_kept_without_a_gradient() -> None:
    tape, x = Tape(), Value(10)
    tape.run([x], 20, [x])
    assert tape.kept() == 0
    assert tape.backward() == 0


def test_a_trained_weight_keeps_its_input_and_starts_the_gradient() -> None:
    tape, x = Tape(), Value(10)
    y = tape.run([x], 20, [x], trains=True)
    assert y.learns
    assert tape.kept() == 10


def test_backward_holds_what_is_kept_and_the_gradients_on_both_sides() -> None:
    tape, x = Tape(), Value(10, learns=True)
    y = tape.run([x], 20, [x])
    tape.run([y], 40, [y])
    # at the last operation: x and y are kept, gradients of its result and of y
    assert tape.backward() == 10 + 20 + 40 + 20


def test_work_counts_while_an_operation_is_run() -> None:
    tape, x = Tape(), Value(10, learns=True)
    tape.run([x], 10, [x], work=7)
    assert tape.backward() == 10 + 10 + 10 + 7


def test_a_gradient_that_is_passed_on_is_not_made_anew() -> None:
    tape, x, y = Tape(), Value(10, learns=True), Value(10, learns=True)
    tape.run([x, y], 10, passes=True)
    assert tape.backward() == 10


def test_gradients_of_a_value_used_twice_are_added_in_a_third() -> None:
    tape, x = Tape(), Value(10, learns=True)
    a = tape.run([x], 10)
    b = tape.run([x], 10)
    tape.run([a, b], 10, passes=True)
    # a's gradient, which is b's too, the gradient of x by b, that by a, and their sum once the former is gone
    assert tape.backward() == 30


def test_parts_take_no_bytes_and_their_gradients_are_put_together() -> None:
    tape, x = Tape(), Value(40, learns=True)
    left, right = tape.split(x, (20, 20))
    tape.run([left, right], 20, [left, right])
    assert tape.kept() == 40
    # kept, the gradient of the result, those of both halves; then both halves and that of the whole
    assert tape.backward() == max(40 + 20 + 20 + 20, 20 + 20 + 40)

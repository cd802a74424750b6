"""The guard's bound by hand, and what it counts."""

from __future__ import annotations

import math

import pytest

from rayrlhf.algorithms.spike_guard import SpikeGuard


def full(bound: float = 5.0, losses: tuple[float, ...] = (1, 2, 3, 4, 10), norm: float = 1.0) -> SpikeGuard:
    guard = SpikeGuard(bound, len(losses))
    for loss in losses:
        guard.record(loss, norm, is_taken=True)
    return guard


def test_the_bound_by_hand() -> None:
    """Losses 1 2 3 4 10: median 3, deviations 2 1 0 1 7 with median 1, bound 3 + 5 * 1.4826 = 10.413."""
    guard = full()
    assert guard.problem(10.412, 1) == "" and guard.problem(-100, -100) == ""
    assert guard.problem(10.414, 1) == "the loss 10.41 is above its bound 10.41"
    # norms that do not vary: 1 + 5 * 0.01 * 1
    assert guard.problem(3, 1.049) == ""
    assert guard.problem(3, 1.051) == "the gradient norm 1.051 is above its bound 1.05"


def test_the_window_moves_with_what_is_taken_only() -> None:
    guard = full()
    guard.record(1000, 1, is_taken=False)
    assert guard.problem(10.412, 1) == "" and guard.problem(10.414, 1)
    guard.record(3, 1, is_taken=True)  # 2 3 3 4 10: median 3, deviations 0 0 1 1 7, median 1
    assert guard.problem(10.412, 1) == "" and guard.problem(10.414, 1)
    guard.record(3, 1, is_taken=True)  # 3 3 4 10 3: median 3, deviation 0: 3 + 5 * 0.03
    assert guard.problem(3.149, 1) == "" and guard.problem(3.151, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_from_the_first_step(value: float) -> None:
    guard = SpikeGuard()
    assert guard.problem(value, 1) == f"the loss is {value}" and guard.problem(1, value)
    guard.record(1e30, 1e30, is_taken=True)
    assert guard.problem(1e38, 1e38) == "", "without a bound nothing finite is"


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    guard = SpikeGuard(bound=1, window=3)
    for _ in range(2):
        guard.record(1, 1, is_taken=True)
        assert not guard.problem(1e9, 1e9)
    guard.record(1, 1, is_taken=True)
    assert guard.problem(1e9, 1) and guard.problem(1, 1e9)


def test_it_counts_and_is_restored() -> None:
    guard = full()
    for is_taken in (False, False, True, False):
        guard.record(3, 1, is_taken)
    assert (guard.num_skipped, guard.num_in_row) == (3, 1)
    other = full(losses=(7, 7, 7, 7, 7))
    other.load_state_dict(guard.state_dict())
    assert other.state_dict() == guard.state_dict() and other.problem(10.414, 1) == guard.problem(10.414, 1) != ""


@pytest.mark.parametrize(("bound", "window"), [(0, 5), (-1, 5), (math.nan, 5), (3, 1)])
def test_bad_settings_are_refused(bound: float, window: int) -> None:
    with pytest.raises(ValueError, match=r"bound is|window is"):
        SpikeGuard(bound, window)

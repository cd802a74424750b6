"""Pace, ETA and course of a stage by hand."""

import pytest

from rayrlhf.watching.history import FIRST_SILENCE_S, MIN_SILENCE_S, Course, History
from rayrlhf.watching.times import phases, roles
from tests.watching.run_files import named, row


def of(*rows) -> History:
    history = History()
    for one in rows:
        history.add(one)
    return history


def test_the_eta_is_the_median_of_recent_steps_times_those_that_remain():
    # intervals 2, 2, 3, 40 (a validation), 4: median 3; 15 of 20 steps remain
    times = (100.0, 102.0, 104.0, 107.0, 147.0, 151.0)
    history = of(*(row("sft", step, time_s, 20) for step, time_s in enumerate(times)))
    assert (history.step, history.step_s, history.eta_s) == (5, 3.0, 45.0)
    assert history.seconds == 51.0
    slow = [row("sft", n, 50.0 * n, 100) for n in range(10)]
    assert of(*slow, *(row("sft", n, 450 + n, 100) for n in range(10, 31))).eta_s == 70.0, (
        "only the last twenty intervals count"
    )


def test_rows_that_leave_out_steps_count_by_step():
    assert of(row("sft", 10, 0.0, 100), row("sft", 20, 5.0, 100)).eta_s == 40.0


def test_without_a_total_or_a_second_row_there_is_no_eta():
    assert of(row("sft", 1, 0.0), row("sft", 2, 1.0)).eta_s is None, "a file of an older version"
    one = of(row("sft", 1, 0.0, 10))
    assert one.step_s is None and one.eta_s is None
    assert of(row("sft", 9, 0.0, 10), row("sft", 10, 1.0, 10)).eta_s == 0.0


def test_the_silence_of_an_interruption_is_no_time_of_the_stage():
    history = of(row("sft", 1, 0.0), row("sft", 2, 10.0), row("sft", 3, 10_010.0), row("sft", 4, 10_020.0))
    assert history.seconds == 20.0


def test_how_long_a_stage_may_be_silent():
    assert of(row("sft", 1, 0.0)).longest_silence == FIRST_SILENCE_S
    assert of(row("sft", 1, 0.0), row("sft", 2, 1.0)).longest_silence == MIN_SILENCE_S
    assert of(row("sft", 1, 0.0), row("sft", 2, 30.0), row("sft", 3, 31.0)).longest_silence == 300.0


def test_a_course_keeps_its_shape_in_few_points():
    course = Course()
    for n in range(4 * Course.SIZE):
        course.add(float(n))
    assert len(course.points) < Course.SIZE
    width = 4 * Course.SIZE // (Course.SIZE // 2)  # halved when 512, 1024 and 2048 points had come
    assert course.points[0] == (width - 1) / 2 and course.points[1] - course.points[0] == width


def test_newest_values_are_those_logged_last_and_null_is_kept():
    history = of(row("sft", 1, 0.0, eval__loss=2.0, loss=1.0), row("sft", 2, 1.0, loss=None, note="text"))
    assert history.newest == named(eval__loss=2.0, loss=None)
    assert history.courses["loss"].points == [1.0]


def test_a_phase_is_its_longest_call_and_a_role_the_sum_of_its_calls():
    times = {
        "time__rollout_generate_s": 2.0,
        "time__policy_logprobs_s": 1.0,
        "time__reference_logprobs_s": 1.5,
        "time__reward_scores_s": 0.5,
        "time__policy_update_s": 4.0,
        "time__critic_update_s": 3.0,
        "time__publisher_publish_s": 0.5,
        "time__step_s": 10.0,
    }
    history = of(row("ppo", 1, 0.0, **{name: value / 2 for name, value in times.items()}), row("ppo", 2, 9.0, **times))
    # means of the two steps: 0.75 of the second one's
    assert [(name, seconds, pytest.approx(share)) for name, seconds, share in phases(history)] == [
        ("generate", 1.5, 0.2),
        ("judge", 1.125, 0.15),
        ("learn", 3.0, 0.4),
        ("publish", 0.375, 0.05),
        ("rest", 1.5, 0.2),
    ]
    assert [(name, seconds) for name, seconds, _ in roles(history)] == [
        ("policy", 3.75),
        ("critic", 2.25),
        ("rollout", 1.5),
        ("reference", 1.125),
        ("reward", 0.375),
        ("publisher", 0.375),
    ]


def test_a_stage_without_roles_has_its_steps_and_what_lies_between():
    history = of(row("sft", 1, 0.0, time__step_s=3.0), row("sft", 3, 8.0, time__step_s=3.0))
    assert phases(history) == [("step", 3.0, 0.75), ("between", 1.0, 0.25)]
    assert roles(history) == [] and phases(of(row("sft", 1, 0.0, time__step_s=3.0))) == []

"""Seconds of stages, phases and roles, added up by hand."""

import pytest

from rayrlhf.evaluation.run_files import read_run
from rayrlhf.evaluation.times import by_phase, by_role, call_times, stage_times
from tests.evaluation.pages import add_rows, add_stage

ROWS = {
    0: {"eval/score": 1.0},
    1: {"time/step_s": 4.0, "time/rollout_generate_s": 1.0, "time/policy_update_s": 2.0, "time/reward_scores_s": 0.5},
    2: {
        "time/step_s": 5.0,
        "time/rollout_generate_s": 2.0,
        "time/policy_update_s": 2.0,
        "time/policy_logprobs_s": 0.5,
        "time/reward_scores_s": 0.25,
    },
}


def test_stages_and_their_steps(tmp_path) -> None:
    run = tmp_path / "try"
    add_stage(run, "prepare", seconds=30.0)
    add_stage(run, "ppo", 2, seconds=10.0, parents={"prompts": str(run / "prepare")})
    add_rows(run, "ppo", ROWS | {3: {"time/step_s": 100.0}})  # after the step that the stage's result is of
    found = {time.stage: time for time in stage_times(read_run(str(run)))}
    ppo, prepare = found["ppo"], found["prepare"]
    assert (ppo.seconds, ppo.share, ppo.num_steps, ppo.in_steps, ppo.outside) == (10.0, 0.25, 2, 9.0, 1.0)
    assert (prepare.share, prepare.num_steps, prepare.in_steps, prepare.outside) == (0.75, 0, None, None)


def test_phases_and_roles() -> None:
    calls = call_times([{"stage": "ppo", "step": step, "time_s": 1.0, **row} for step, row in ROWS.items()])
    assert [(c.phase, c.role, c.method, c.seconds, c.per_step) for c in calls] == [
        ("generate", "rollout", "generate", 3.0, 1.5),
        ("judge", "reward", "scores", 0.75, 0.375),
        ("judge", "policy", "logprobs", 0.5, 0.25),
        ("learn", "policy", "update", 4.0, 2.0),
    ]
    assert [c.share for c in calls] == pytest.approx([3 / 8.25, 0.75 / 8.25, 0.5 / 8.25, 4 / 8.25])
    assert by_role(calls) == [("policy", 4.5), ("rollout", 3.0), ("reward", 0.75)]
    assert call_times([{"step": 1, "time/step_s": 1.0}]) == [], "a supervised stage has no roles"


def test_a_call_of_another_name_is_of_no_phase() -> None:
    [call] = call_times([{"step": 1, "time/policy_save_all_s": 2.0}])
    assert (call.phase, call.role, call.method) == ("other", "policy", "save_all")


def test_a_phase_lasts_as_long_as_its_slowest_call() -> None:
    rows = [{"step": step, **row} for step, row in ROWS.items()]
    # judge: 0.5 s of the reward in step 1; the longer of 0.5 and 0.25 s, side by side, in step 2
    assert by_phase(rows) == [("generate", 3.0), ("judge", 1.0), ("learn", 4.0), ("rest", 1.0)]
    assert by_phase([{"step": 1, "time/step_s": 5.0}]) == []

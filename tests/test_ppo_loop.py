"""Evaluation, checkpoints, the best step and resume, with fakes of the roles."""

import asyncio
import io
import json

import pytest
from rich.console import Console

from rayrlhf.checkpoint import find_stage
from rayrlhf.coordinator import PPO, Roles
from rayrlhf.metrics import MetricsLog
from rayrlhf.ppo_config import AlgorithmConfig, KLConfig, LoopConfig
from rayrlhf.ppo_loop import Evaluator, PPOLoop
from rayrlhf.timing import Stopwatch
from tests.fakes import FakeRoles, prompts


class Words:
    """A tokenizer for the fakes' tokens."""

    def decode(self, tokens, skip_special_tokens):
        return " ".join(f"w{t}" for t in tokens.tolist())


def loop(fake: FakeRoles, run, steps: int, gold=None, done: int = -1, **options) -> PPOLoop:
    config = LoopConfig(steps=steps, rollout_batch=2, evaluate_every=2, save_every=1, keep=9, **options)
    stopwatch = Stopwatch()
    policy = stopwatch.timed(fake.policy, "policy")
    ppo = PPO(
        Roles(policy, fake.critic, fake.frozen, fake, fake, fake),
        AlgorithmConfig(kl=KLConfig(beta=0.1, target=0.5, horizon=10)),
        seed=0,
    )
    return PPOLoop(
        ppo=ppo,
        config=config,
        prompts=lambda start: (prompts(2, first=2 * n) for n in range(start, steps)),
        evaluator=Evaluator(prompts(3), Words(), gold, seed=1),
        log=MetricsLog(f"{run}", "ppo", done),
        stopwatch=stopwatch,
        stage_root=f"{run}/ppo",
        describe={"steps": steps},
        parents={},
        console=Console(file=io.StringIO()),
    )


def rows_of(run) -> dict[int, dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_a_run_logs_every_step_evaluates_and_saves(tmp_path):
    last = asyncio.run(loop(FakeRoles(), tmp_path, 3, gold=lambda p, r: [0.5, 0.5, -1.0]).run(resume=False))
    rows = rows_of(tmp_path)
    assert sorted(rows) == [0, 1, 2, 3]
    assert [step for step in rows if "eval/score" in rows[step]] == [0, 2, 3], "before, every 2, and at the end"
    assert rows[0]["eval/gold"] == 0.0 and rows[0]["eval/gold_positive_share"] == pytest.approx(2 / 3)
    assert rows[1]["time/policy_update_s"] > 0 and rows[1]["sync/logprob_gap"] == 0.0
    assert find_stage(last).manifest["is_final"] and not find_stage(f"{tmp_path}/ppo/step_000001").manifest["is_final"]
    samples = (tmp_path / "ppo" / "samples" / "step_000002.jsonl").read_text().splitlines()
    assert json.loads(samples[1]) == {"prompt": "w1 w1", "response": "w5 w5 w5", "score": 1.0, "gold": 0.5}


def test_the_best_step_is_within_the_bound_on_kl(tmp_path):
    fake = FakeRoles(logprob=-1.0, reference=-1.0)  # KL grows by 3 * 0.125 nats a step; the score never changes
    asyncio.run(loop(fake, tmp_path, 4, best="eval/kl", max_kl=1.0).run(resume=False))
    assert find_stage(f"{tmp_path}/ppo/best").manifest["step"] == 2
    assert find_stage(f"{tmp_path}/ppo").manifest["step"] == 4


def test_resumed_after_any_step_it_gives_the_numbers_of_the_undisturbed_run(tmp_path):
    asyncio.run(loop(FakeRoles(), tmp_path / "whole", 4).run(resume=False))
    whole = rows_of(tmp_path / "whole")
    for killed_after in (1, 3):
        run = tmp_path / f"killed-{killed_after}"
        asyncio.run(loop(FakeRoles(), run, killed_after).run(resume=False))
        asyncio.run(loop(FakeRoles(), run, 4, done=killed_after).run(resume=True))
        rows = rows_of(run)
        for step, row in whole.items():
            same = {k: v for k, v in row.items() if not k.startswith(("time", "perf"))}
            assert {k: rows[step].get(k) for k in same if not k.startswith("eval/")} == {
                k: v for k, v in same.items() if not k.startswith("eval/")
            }
    assert whole[4]["objective/beta"] != whole[1]["objective/beta"], "the adaptive beta moved, so it was restored too"

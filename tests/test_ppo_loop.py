"""Evaluation, checkpoints, the best step and resume, with fakes of the roles."""

import asyncio
import errno
import io
import json
import time
from dataclasses import replace

import pytest
from rich.console import Console

from rayrlhf import ppo_loop, stopping
from rayrlhf.checkpoint import find_stage, writing
from rayrlhf.coordinator import PPO, Roles
from rayrlhf.errors import CheckpointError, DivergenceError, GaveUp, HealthError, Interrupted
from rayrlhf.metrics import MetricsLog
from rayrlhf.policy_roles import PretrainingMix
from rayrlhf.ppo_config import AlgorithmConfig, KLConfig, LoopConfig
from rayrlhf.ppo_loop import Evaluator, PPOLoop, Progress
from rayrlhf.restarts import RecoveryConfig, Restarts
from rayrlhf.sampling import Ahead, OnPolicy
from rayrlhf.stream import Stream
from rayrlhf.timing import Stopwatch
from tests.fakes import FakeRoles, prompts


class Words:
    """A tokenizer for the fakes' tokens."""

    def decode(self, tokens, skip_special_tokens):
        return " ".join(f"w{t}" for t in tokens.tolist())


def batches(first: int, last: int):
    yield from (prompts(2, first=2 * n) for n in range(first, last))


def loop(
    fake: FakeRoles, run, steps: int, gold=None, progress: Progress | None = None, max_staleness=0, **options
) -> PPOLoop:
    """A loop that has used the prompts of `progress`; `progress.step` of a resumed run."""
    options = {"save_every": 1, **options}
    config = LoopConfig(steps=steps, rollout_batch=2, evaluate_every=2, keep=9, **options)
    stopwatch = Stopwatch()
    policy = stopwatch.timed(fake.policy, "policy")
    ppo = PPO(
        Roles(policy, fake.critic, fake.frozen, fake, fake, fake),
        AlgorithmConfig(kl=KLConfig(beta=0.1, target=0.5, horizon=10)),
    )
    stream = Stream(batches, progress.batches if progress else 0, steps)
    sampler = Ahead(fake, fake, stream, 0, max_staleness, steps) if max_staleness else OnPolicy(fake, fake, stream, 0)
    return PPOLoop(
        ppo=ppo,
        config=config,
        sampler=sampler,
        evaluator=Evaluator(prompts(3), Words(), gold, seed=1),
        log=MetricsLog(f"{run}", "ppo", steps, progress.step if progress else -1),
        stopwatch=stopwatch,
        stage_root=f"{run}/ppo",
        describe={"steps": steps},
        parents={},
        console=Console(file=io.StringIO()),
        restarts=Restarts(RecoveryConfig(max_restarts=2, backoff_s=0.0)),
    )


def rows_of(run) -> dict[int, dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_a_run_logs_every_step_evaluates_and_saves(tmp_path):
    last = asyncio.run(loop(FakeRoles(), tmp_path, 3, gold=lambda p, r: [0.5, 0.5, -1.0]).run())
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
    asyncio.run(loop(fake, tmp_path, 4, best="eval/kl", max_kl=1.0).run())
    assert find_stage(f"{tmp_path}/ppo/best").manifest["step"] == 2
    assert find_stage(f"{tmp_path}/ppo").manifest["step"] == 4


def test_asked_to_stop_it_ends_after_the_step_saved_and_goes_on_as_if_never_asked(tmp_path):
    asyncio.run(loop(FakeRoles(), tmp_path / "whole", 4, save_every=3).run())
    part = loop(FakeRoles(), tmp_path / "cut", 4, save_every=3)
    update, calls = part.ppo.roles.critic.update, []

    async def update_and_ask(*given):
        calls.append(given)
        if len(calls) == 2:
            assert stopping.request()
        return await update(*given)

    part.ppo.roles.critic.update = update_and_ask
    with pytest.raises(Interrupted):
        asyncio.run(part.run())
    stage = find_stage(f"{tmp_path}/cut/ppo")
    assert stage.manifest["step"] == 2 and not stage.manifest["is_final"] and max(rows_of(tmp_path / "cut")) == 2
    progress = Progress.of(stage)
    asyncio.run(loop(FakeRoles(), tmp_path / "cut", 4, progress=progress, save_every=3).run(progress))
    whole, resumed = rows_of(tmp_path / "whole"), rows_of(tmp_path / "cut")
    names = [name for name in whole[4] if not name.startswith(("time", "perf"))]
    assert [{n: resumed[step].get(n) for n in names} for step in (1, 2, 3, 4)] == [
        {n: whole[step].get(n) for n in names} for step in (1, 2, 3, 4)
    ]


def test_asked_to_stop_while_it_saves_it_ends_with_that_checkpoint(tmp_path):
    part = loop(FakeRoles(), tmp_path, 4, save_every=2)
    save = part.ppo.roles.critic.save

    async def ask_and_save(directory):
        assert stopping.request()
        await save(directory)

    part.ppo.roles.critic.save = ask_and_save
    with pytest.raises(Interrupted):
        asyncio.run(part.run())
    assert find_stage(f"{tmp_path}/ppo").manifest["step"] == 2 and max(rows_of(tmp_path)) == 2


def test_resumed_after_any_step_it_gives_the_numbers_of_the_undisturbed_run(tmp_path):
    asyncio.run(loop(FakeRoles(), tmp_path / "whole", 4).run())
    whole = rows_of(tmp_path / "whole")
    for killed_after in (1, 3):
        run = tmp_path / f"killed-{killed_after}"
        asyncio.run(loop(FakeRoles(), run, killed_after).run())
        progress = Progress.of(find_stage(f"{run}/ppo"))
        asyncio.run(loop(FakeRoles(), run, 4, progress=progress).run(progress))
        rows = rows_of(run)
        for step, row in whole.items():
            same = {k: v for k, v in row.items() if not k.startswith(("time", "perf", "total_steps"))}
            assert {k: rows[step].get(k) for k in same if not k.startswith("eval/")} == {
                k: v for k, v in same.items() if not k.startswith("eval/")
            }
    assert whole[4]["objective/beta"] != whole[1]["objective/beta"], "the adaptive beta moved, so it was restored too"


def test_a_divergence_rolls_back_to_the_newest_checkpoint_with_new_prompts_and_a_lower_rate(tmp_path):
    """Checkpoints after steps 2 and 4; the 4th update diverges, and the 3rd one after the rollback again."""
    fake = FakeRoles(diverges_at=[4, 6])
    done = loop(fake, tmp_path, 5, save_every=2, rollback={"lr_factor": 0.25})
    asyncio.run(done.run())
    assert fake.lr_scales == [0.25, 0.0625]
    assert fake.logprob == -1.0 + 5 * 0.125, "the weights of step 2, and three updates more"
    # updates 1 2 3 (4: back to 2) 5 (6: back to 2) 7 8 9, each on prompts of its own
    assert done.progress.batches == 9 and done.progress.num_rollbacks == 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5], "each step once"
    scores = [row.get("objective/scores") for row in rows]  # of batch n, from 0: prompts 2n and 2n + 1
    assert scores == [None, 0.5, 2.5, 12.5, 14.5, 16.5]
    assert [row.get("optim/rollbacks") for row in rows] == [None, 0, 0, 2, 2, 2]
    assert "rolled back to" in done.console.file.getvalue()
    resumed = Progress.of(find_stage(f"{tmp_path}/ppo"))
    assert (resumed.step, resumed.batches, resumed.num_rollbacks, resumed.lr_scale) == (5, 9, 2, 0.0625)


@pytest.mark.parametrize(
    ("options", "diverges_at", "told"),
    [
        ({"save_every": 9}, [1], "no checkpoint yet to go back to: loop.save_every is 9"),
        ({"rollback": {"max_rollbacks": 1}}, [2, 3], "loop.rollback.max_rollbacks=1 rollbacks are used up"),
        ({"rollback": {"max_rollbacks": 0}}, [2], "loop.rollback.max_rollbacks=0 rollbacks are used up"),
    ],
)
def test_where_no_rollback_is_left_the_run_stops(tmp_path, options, diverges_at, told):
    with pytest.raises(DivergenceError, match="the policy's training diverged") as error:
        asyncio.run(loop(FakeRoles(diverges_at=diverges_at), tmp_path, 4, **options).run())
    assert told in str(error.value)


def test_where_the_newest_checkpoint_is_torn_a_rollback_says_so(tmp_path):
    done = loop(FakeRoles(diverges_at=[3]), tmp_path, 4)
    generate = done.ppo.roles.rollout.generate

    async def tear_and_generate(*given):
        (tmp_path / "ppo" / "step_000002" / "model" / "config.json").unlink(missing_ok=True)
        return await generate(*given)

    done.ppo.roles.rollout.generate = tear_and_generate
    with pytest.raises(DivergenceError, match="step_000002 is torn: model/config.json is missing"):
        asyncio.run(done.run())


def test_a_watch_that_stops_says_where_a_run_that_was_stopped_as_it_counted_goes_on(tmp_path):
    options = {"health": {"metrics": {"objective/kl": {"above": 1.0, "steps": 3, "action": "stop"}}}}
    part = loop(FakeRoles(), tmp_path, 8, **options)
    update = part.ppo.roles.critic.update

    async def update_and_ask(batch, step):  # the KL is above 1 from step 4 on
        if step == 5:
            assert stopping.request()
        return await update(batch, step)

    part.ppo.roles.critic.update = update_and_ask
    with pytest.raises(Interrupted):
        asyncio.run(part.run())
    progress = Progress.of(find_stage(f"{tmp_path}/ppo"))
    with pytest.raises(HealthError, match="step_000005, saved on request, is from when it was counting"):
        asyncio.run(loop(FakeRoles(), tmp_path, 8, progress=progress, **options).run(progress))


def plain(rows: list[dict]) -> list[dict]:
    """Rows without what a failure may change."""
    return [{name: value for name, value in row.items() if not name.startswith(("time", "perf"))} for row in rows]


def logged(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


CALLS = ["policy.logprobs", "policy.update", "critic.update", "policy.save", "publish"]


@pytest.mark.parametrize(("call", "number"), [(call, number) for call in CALLS for number in (1, 2, 3)])
def test_policy_or_critic_lost_anywhere_the_numbers_are_those_of_the_undisturbed_run(tmp_path, call, number):
    """With checkpoints after steps 2 and 4: nothing is there yet, one is, and the steps since are taken again."""
    whole, lossy = FakeRoles(), FakeRoles(lost_at=[(call, number)])
    asyncio.run(loop(whole, tmp_path / "whole", 5, save_every=2).run())
    done = loop(lossy, tmp_path / "lossy", 5, save_every=2)
    asyncio.run(done.run())
    assert lossy.restarts == 2 and done.restarts.count == 1, "policy and critic once each"
    rows = logged(tmp_path / "lossy")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5], "each step once"
    assert plain(rows) == plain(logged(tmp_path / "whole"))
    assert rows[-1]["perf/role_restarts"] == 1 and lossy.logprob == whole.logprob
    assert Progress.of(find_stage(f"{tmp_path}/lossy/ppo")).batches == 5
    assert "policy and critic go on from" in done.console.file.getvalue()


@pytest.mark.parametrize("lost", [("critic.save", 2), ("critic.update", 4)])
def test_a_pretraining_mix_goes_on_with_the_texts_of_the_steps_taken_again(tmp_path, lost):
    """Lost in the second save, when the policy's part is written, and while a thread still reads the texts."""

    def slowly(first, last):
        for number in range(first, last):
            time.sleep(0.02)
            yield number

    class Later(FakeRoles):
        async def publish(self, version):
            await asyncio.sleep(0.05)  # by when a thread that was left has its text
            return await super().publish(version)

    fake = Later(lost_at=[lost])
    done = loop(fake, tmp_path, 5, save_every=2)
    roles, update = done.ppo.roles, done.ppo.roles.critic.update

    async def update_later(*given):
        await asyncio.sleep(0.01)  # by when the thread reads
        return await update(*given)

    roles.critic.update = update_later
    done.ppo.roles = replace(roles, policy=PretrainingMix(roles.policy, Stream(slowly, 0, 5), 2))
    asyncio.run(done.run())
    assert done.restarts.count == 1 and fake.texts == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}


def test_lost_while_it_is_being_restored_or_after_a_rollback(tmp_path):
    """Step 3's update diverges: back to 2, on with new prompts.  That load is lost, and the next one."""
    fake = FakeRoles(diverges_at=[3], lost_at=[("policy.load", 1), ("policy.load", 2)])
    done = loop(fake, tmp_path / "lossy", 4, save_every=2)
    asyncio.run(done.run())
    only_diverging = loop(FakeRoles(diverges_at=[3]), tmp_path / "whole", 4, save_every=2)
    asyncio.run(only_diverging.run())
    assert plain(logged(tmp_path / "lossy")) == plain(logged(tmp_path / "whole"))
    assert fake.lr_scales == [0.5] and done.restarts.count == 2
    assert done.progress.batches == only_diverging.progress.batches == 5 and done.progress.num_rollbacks == 1


def test_lost_again_and_again_in_one_step_the_run_gives_up_and_can_be_resumed(tmp_path):
    fake = FakeRoles(lost_at=[("policy.update", number) for number in (4, 6, 8)])  # each time step 4, after step 3
    with pytest.raises(
        GaveUp, match=r"policy and critic failed 3 time\(s\) in a row, and recovery.max_restarts=2"
    ) as e:
        asyncio.run(loop(fake, tmp_path, 5, save_every=2).run())
    assert str(e.value).startswith("policy.update: a rank died")
    progress = Progress.of(find_stage(f"{tmp_path}/ppo"))
    assert progress.step == 2
    asyncio.run(loop(FakeRoles(), tmp_path, 5, progress=progress, save_every=2).run(progress))
    assert [row["step"] for row in logged(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_a_full_disk_ends_the_run_without_its_half_written_checkpoint(tmp_path):
    done = loop(FakeRoles(), tmp_path, 4)
    save, calls = done.ppo.roles.critic.save, []

    async def fill_the_disk(directory):
        await save(directory)
        calls.append(directory)
        if len(calls) == 2:
            with writing(directory):
                raise OSError(errno.ENOSPC, "No space left on device")

    done.ppo.roles.critic.save = fill_the_disk
    with pytest.raises(CheckpointError, match="step_000002 cannot be written: No space left on device"):
        asyncio.run(done.run())
    assert [path.name for path in (tmp_path / "ppo").glob("step_*")] == ["step_000001"]


def test_a_disk_that_is_full_for_the_loops_own_file_is_told_as_such(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ppo_loop, "asdict", full)
    with pytest.raises(CheckpointError, match="loop.json cannot be written: No space left on device"):
        asyncio.run(loop(FakeRoles(), tmp_path, 4).run())


def test_a_further_step_begins_the_count_anew(tmp_path):
    fake = FakeRoles(lost_at=[("policy.update", number) for number in (2, 3, 6, 7)])  # twice step 2, twice step 4
    done = loop(fake, tmp_path, 5)
    asyncio.run(done.run())
    assert done.restarts.count == 4 and [row["step"] for row in logged(tmp_path)] == [0, 1, 2, 3, 4, 5]

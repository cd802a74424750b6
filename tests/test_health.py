"""Watches over a run's metrics: a planted fault for each, through the real loop with fakes of the roles."""

import asyncio
import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch

from rayrlhf.batches import Part, Prompts, Rollouts, Scores
from rayrlhf.checkpoint import find_stage
from rayrlhf.config import load
from rayrlhf.errors import ConfigError, DivergenceError, HealthError
from rayrlhf.health import START, WATCHED, Health, HealthConfig, rolled_back
from rayrlhf.ppo_config import LoopConfig
from rayrlhf.ppo_loop import Progress
from rayrlhf.sampling import OnPolicy
from rayrlhf.stream import Stream
from tests.fakes import FakeCritic, FakePolicy, FakeRoles, prompts
from tests.test_ppo_loop import loop, rows_of

SINCE = 6  # the first step with a fault: relative bounds have seen the start


@dataclass
class Faulty(FakeRoles):
    """Roles that are well but for `fault`, from step SINCE to `until`."""

    fault: str = ""
    until: int = 10**6

    def has(self, fault: str) -> bool:
        return fault == self.fault and SINCE <= self.version + 1 <= self.until

    async def generate(self, prompts: Prompts, seed: int, part: Part | None = None) -> Rollouts:
        found = await super().generate(prompts, seed, part)
        rows, width, length = len(found), prompts.tokens.shape[1], 1 if self.has("length") else 10
        tokens = torch.nn.functional.pad(prompts.tokens, (0, length))
        mask = torch.zeros(rows, width + length, dtype=torch.bool)
        for row in range(rows):
            start = int(prompts.lengths[row])
            own = 100 + 20 * row + torch.arange(length)
            if self.has("repetition"):
                own[:] = 7
            if self.has("diversity"):
                own = 100 + torch.arange(length) % 5
            tokens[row, start : start + length], mask[row, start : start + length] = own, True
        sampled = torch.where(mask, torch.tensor(self.published), 0.0)
        return Rollouts(
            tokens, prompts.lengths + length, mask, sampled, found.finished, found.prompt_index, found.policy_version
        )

    async def scores(self, rollouts: Rollouts) -> Scores:
        total = torch.arange(len(rollouts)).float()
        if self.has("score_std"):
            total[:] = 3.0
        if self.has("equal_groups"):
            total = total // 2
        if self.has("reward"):
            total[0] = math.nan
        return Scores(total, total[:, None], ("fake",))

    async def publish(self, version: int) -> dict[str, float]:
        before, answer = self.published, await super().publish(version)
        if self.has("logprob_gap"):  # in the next step the policy has moved, and the engine has not
            self.published = before
        return answer

    @property
    def policy(self) -> FakePolicy:
        return _Policy(self)

    @property
    def critic(self) -> FakeCritic:
        return _Critic(self)


def spoilt(values: torch.Tensor) -> torch.Tensor:
    """The first row without numbers, outside its response too."""
    return torch.cat([torch.full_like(values[:1], math.nan), values[1:]])


class _Policy(FakePolicy):
    async def update(self, batch, step, kl_coefficient):
        self.shared.calls.append("policy.update")
        self.shared.updates += 1
        self.shared.logprob += 0.02 * (self.shared.fault == "logprob_gap")
        return {"objective/entropy": 0.1 if self.shared.has("entropy") else 3.0}

    async def logprobs(self, rollouts):
        found = torch.where(rollouts.response_mask, self.shared.logprob, 0.0)
        return spoilt(found) if self.shared.has("policy") else found

    async def load(self, directory, lr_scale):
        await super().load(directory, lr_scale)
        if self.shared.until < 10**6:  # a rollback is what helps
            self.shared.fault = ""


class _Critic(FakeCritic):
    async def values(self, rollouts):
        found = await super().values(rollouts)
        return replace(found, values=spoilt(found.values)) if self.shared.has("critic") else found

    async def update(self, batch, step):
        return {"critic/explained_variance": 0.0 if self.shared.has("explained_variance") else 0.4}


def run_of(fault, path, steps=20, until=10**6, progress=None, **options):
    """A loop of `steps` with that fault; a KL fault is one of the reference."""
    fake = Faulty(fault=fault, until=until)
    made = loop(fake, path, steps, progress=progress)
    made.config = LoopConfig(steps=steps, rollout_batch=4, **{"evaluate_every": 99, "save_every": 1, **options})
    batches = progress.batches if progress else 0
    stream = Stream(lambda first, last: (prompts(4, first=4 * n) for n in range(first, last)), batches, 9)
    made.sampler = OnPolicy(fake, fake, stream, 0)
    made.ppo.config = made.ppo.config.model_copy(update={"group_size": 2})
    if fault in ("kl", "reference"):
        real = made.ppo.roles.reference.logprobs

        async def far(rollouts):
            found = await real(rollouts)
            if fake.has("reference"):
                return spoilt(found)
            return torch.where(rollouts.response_mask, found - 2.5, 0.0) if fake.has("kl") else found

        made.ppo.roles.reference.logprobs = far
    return made


def said(made) -> list[str]:
    return [line for line in made.console.file.getvalue().splitlines() if "loop.health" in line]


def test_a_healthy_run_fires_nothing(tmp_path):
    made = run_of("", tmp_path, steps=25)
    asyncio.run(made.run())
    rows = rows_of(tmp_path)
    flags = {name for name in rows[25] if name.startswith("health/")}
    assert flags == {f"health/{name}" for name in [*WATCHED, "fired"]}
    assert not any(rows[step][name] for step in range(1, 26) for name in flags & rows[step].keys()) and not said(made)


@pytest.mark.parametrize("fault", list(WATCHED))
def test_each_fault_fires_its_watch_once_and_recovers_once(tmp_path, fault):
    steps = getattr(HealthConfig(), fault).steps
    until = SINCE + steps + 1
    made = run_of(fault, tmp_path, steps=until + steps + 2, until=until, save_every=99)
    asyncio.run(made.run())
    rows = rows_of(tmp_path)
    fired = [step for step in rows if rows[step].get(f"health/{fault}")]
    assert fired == list(range(SINCE + steps - 1, until + steps))
    told = [line for line in said(made) if f"loop.health.{fault}" in line]
    assert len(told) == 2 and told[0].startswith(f"warning: loop.health.{fault}: {WATCHED[fault].metric} is ")
    assert WATCHED[fault].cause in told[0] and WATCHED[fault].remedy in told[0] and f"loop.health.{fault}.*" in told[0]
    assert told[1].startswith(f"loop.health.{fault} has recovered")
    others = {name for step in rows for name in rows[step] if name.startswith("health/") and rows[step][name]}
    assert others <= {f"health/{fault}", "health/fired", *_BESIDE.get(fault, ())}


# what a fault cannot but break as well
_BESIDE = {"repetition": ["health/diversity"]}


@pytest.mark.parametrize("role", ["reward", "policy", "reference", "critic"])
def test_numbers_that_are_none_are_not_learnt_from(tmp_path, role):
    """At the first step 6; the run goes back to the checkpoint of step 5."""
    made = run_of(role, tmp_path, steps=8, until=9)
    asyncio.run(made.run())
    text = made.console.file.getvalue()
    what, count = {"reward": ("scores", 1), "critic": ("values", 10)}.get(role, ("log-probs", 10))
    assert f"warning: {count} {what} of the {role} are not finite at step 6 (first rows: [0])" in text
    assert f"rolled back to {tmp_path}/ppo/step_000005 (1 of 2)" in text
    assert made.ppo.roles.rollout.updates == 8, "no update at the first step 6"
    with pytest.raises(DivergenceError, match=r"(?s)not finite at step 6.*max_rollbacks=2 rollbacks are used up"):
        asyncio.run(run_of(role, tmp_path / "always").run())


def test_rollbacks_that_do_not_help_end(tmp_path):
    with pytest.raises(DivergenceError, match=r"(?s)loop.health.kl: objective/kl_per_token is 2.5, above 2.*max_rollb"):
        asyncio.run(run_of("kl", tmp_path, health={"kl": {"action": "roll_back"}}).run())


def test_a_stop_leaves_the_newest_checkpoint_from_before_it_began(tmp_path):
    """The KL is bad from step 6 on and the third such step stops the run; steps 6 and 7 leave no checkpoint."""
    stop = {"kl": {"action": "stop"}}
    made = run_of("kl", tmp_path, health=stop, evaluate_every=1, best="eval/gold", keep=9)
    better = itertools.count()
    made.evaluator.gold = lambda prompts, responses: [float(next(better))] * len(prompts)
    with pytest.raises(HealthError, match=r"(?s)loop.health.kl:.*step_000005 is from before it began"):
        asyncio.run(made.run())
    assert find_stage(f"{tmp_path}/ppo/best").manifest["step"] == 5 and not said(made), "the error says it"
    assert max(rows_of(tmp_path)) == 8 and rows_of(tmp_path)[8]["health/kl"] == 1
    stage = find_stage(f"{tmp_path}/ppo")
    assert stage.manifest["step"] == 5 and Progress.of(stage).health["kl"] == {"row": 0, "fired": 0}
    with pytest.raises(HealthError, match="There is no checkpoint from before it began"):
        asyncio.run(run_of("kl", tmp_path / "none", health=stop, save_every=99).run())


def test_resumed_in_the_middle_of_a_row_it_fires_when_it_would_have(tmp_path):
    asyncio.run(run_of("entropy", tmp_path / "whole", steps=14).run())
    whole = rows_of(tmp_path / "whole")
    flags = [name for name in whole[14] if name.startswith("health/")]
    for cut in (3, 8, 12):  # in the start of a relative bound, in the middle of a row, while it is fired
        asyncio.run(run_of("entropy", tmp_path / f"{cut}", steps=cut).run())
        progress = Progress.of(find_stage(f"{tmp_path}/{cut}/ppo"))
        asyncio.run((made := run_of("entropy", tmp_path / f"{cut}", steps=14, progress=progress)).run(progress))
        rows = rows_of(tmp_path / f"{cut}")
        assert [[rows[n][flag] for flag in flags] for n in range(1, 15)] == [
            [whole[n][flag] for flag in flags] for n in range(1, 15)
        ]
        assert len(said(made)) == (cut < 10), "it fires at step 10"


def test_a_checkpoint_without_watches_is_one_of_an_older_version():
    assert Progress(**{"step": 3}).health == {}
    assert rolled_back({"kl": {"row": 2, "fired": 1}, "length": {"row": 1, "fired": 0, "sum": 3.0, "seen": 2}}) == {
        "kl": {"row": 0, "fired": 1},
        "length": {"row": 0, "fired": 0, "sum": 3.0, "seen": 2},
    }


def seen(values, name="objective/kl", **bound):
    """Whether the watch over `name` has fired, after each value."""
    health, state = Health(HealthConfig(metrics={name: bound})), {}
    return [health.see({name: value}, state)[0].get(f"health/metrics.{name}") for value in values]


def test_bounds_by_hand():
    assert seen([1, 3, 3, 1, 3, 3, 3, 1, 1, 3, 1, 1, 1], above=2.0, steps=3) == [0] * 6 + [1] * 6 + [0]
    assert seen([0, 5, -5, 2], above=4.0, below=-4.0, steps=1) == [0, 1, 1, 0]
    assert seen([2.0], above=2.0, below=2.0, steps=1) == [0], "the bound itself is healthy"
    assert seen([math.inf, 0], above=2.0, steps=1) == [1, 0]
    # of the start, whose mean is 10: below 5
    start = [8, 12, 9, 11, 10]
    assert seen([math.inf, *start, 4], below=0.5, relative=True, steps=1) == [0] * 6 + [1]
    assert len(start) == START and seen([*start, 6, 4, 6], below=0.5, relative=True, steps=1) == [0] * 6 + [1, 0]
    assert seen([math.nan, 3.0], above=2.0, steps=1) == [None, 1]


def test_keys_are_a_line_each():
    config = load(LoopConfig, None, ["health.kl.above=7", "health.length.action=ignore"])
    assert config.health.kl.above == 7 and config.health.kl.steps == 3
    state = {}
    flags, _ = Health(config.health).see({"objective/kl_per_token": 8.0, "rollout/length": 3.0}, state)
    assert set(flags) == {"health/kl", "health/fired"}
    own = load(LoopConfig, None, ["health.metrics={eval/gold: {below: 0.1, steps: 2, action: stop}}"])
    assert own.health.metrics["eval/gold"].action == "stop"
    with pytest.raises(ConfigError, match="PPO logs no metric objective/kll; did you mean objective/kl"):
        load(LoopConfig, None, ["health.metrics={objective/kll: {above: 1}}"])
    with pytest.raises(ConfigError, match="a watch needs a bound"):
        load(LoopConfig, None, ["health.kl.above=null"])

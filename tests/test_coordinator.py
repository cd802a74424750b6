"""The step's order and arithmetic, with fakes of the roles and numbers worked out by hand."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch

from jobs.ppo import _peak_memory
from rayrlhf import coordinator
from rayrlhf.algorithms.masking import masked_whiten
from rayrlhf.batches import CriticBatch, PolicyBatch
from rayrlhf.coordinator import PPO, Roles
from rayrlhf.errors import StateLost
from rayrlhf.policy_roles import CriticWarmup, PretrainingMix, SampledLogprobs
from rayrlhf.ppo_config import AlgorithmConfig, KLConfig, ScoreConfig, TruncationConfig
from rayrlhf.ppo_metrics import step_metrics
from rayrlhf.sampling import OnPolicy
from rayrlhf.side_by_side import gather
from rayrlhf.stream import Stream
from tests.fakes import FakeRoles, prompts


def make(fake: FakeRoles, **config) -> PPO:
    roles = Roles(fake.policy, fake.critic, fake.frozen, fake, fake, fake)
    return PPO(roles, AlgorithmConfig(**config))


def sampler(fake: FakeRoles, rows: int = 2) -> OnPolicy:
    return OnPolicy(fake, fake, Stream(lambda first, last: (prompts(rows) for _ in range(first, last)), 0, 2), seed=7)


def step(ppo: PPO, fake: FakeRoles, rows: int = 2):
    async def both():
        await fake.publish(0)
        return await ppo.step(sampler(fake, rows), 1)

    return asyncio.run(both())


def test_the_order_is_that_of_the_paper():
    fake = FakeRoles()
    step(make(fake), fake)
    assert fake.calls[:2] == ["publish 0", "generate"]
    assert sorted(fake.calls[2:6]) == [
        "critic.values",
        "policy.logprobs",
        "reference.logprobs",
        "reward.scores",
    ]
    assert sorted(fake.calls[6:8]) == ["critic.update", "policy.update"]
    assert fake.calls[8:] == ["publish 1"]


def test_rewards_returns_and_advantages_by_hand():
    # log-ratio -1 - (-1.5) = 0.5 a token, beta 0.2: -0.1 a token; scores 0 and 1 on the last token.
    # gamma = lam = 1: the return at t is the sum of the rewards from t on.
    fake = FakeRoles(logprob=-1.0, reference=-1.5)
    result = step(make(fake, lam=1.0, kl=KLConfig(beta=0.2)), fake)
    assert torch.allclose(result.estimate.rewards[0], torch.tensor([0, -0.1, -0.1, -0.1, 0]))
    assert torch.allclose(result.estimate.rewards[1], torch.tensor([0, 0, -0.1, -0.1, 0.9]))
    assert torch.allclose(result.estimate.returns[0], torch.tensor([0, -0.3, -0.2, -0.1, 0]), atol=1e-6)
    assert torch.allclose(result.estimate.returns[1], torch.tensor([0, 0, 0.7, 0.8, 0.9]), atol=1e-6)
    mask = result.experience.rollouts.response_mask
    whole = masked_whiten(torch.where(mask, result.estimate.returns - 0.5, 0.0), mask)
    policy, critic = sorted(fake.batches, key=lambda b: isinstance(b, CriticBatch))
    assert isinstance(policy, PolicyBatch) and torch.allclose(policy.advantages, whole, atol=1e-6)
    assert torch.allclose(critic.returns, result.estimate.returns)


def test_metrics_of_that_step():
    fake = FakeRoles(logprob=-1.0, reference=-1.5)
    metrics = step(make(fake, kl=KLConfig(beta=0.2)), fake).metrics
    assert metrics["objective/kl"] == pytest.approx(1.5)
    assert metrics["objective/scores"] == pytest.approx(0.5)
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.3)
    assert metrics["objective/rlhf_reward"] == pytest.approx(0.2)
    assert metrics["sync/logprob_gap"] == 0.0 and metrics["sync/staleness"] == 0.0
    assert metrics["loss/policy_avg"] == 0.25 and metrics["loss/value_avg"] == 0.5


def test_metrics_are_made_while_the_roles_learn(monkeypatch):
    fake, made = FakeRoles(), threading.Event()
    ppo = make(fake)

    class Waiting(CriticWarmup):
        async def update(self, *args):
            assert await asyncio.to_thread(made.wait, 20), "they waited for the roles"
            return await self.policy.update(*args)

    def describe(*args):
        metrics = step_metrics(*args)
        made.set()
        return metrics

    ppo.roles = replace(ppo.roles, policy=Waiting(fake.policy, 0))
    monkeypatch.setattr(coordinator, "step_metrics", describe)
    assert step(ppo, fake).metrics["objective/scores"] == 0.5


def test_a_missed_publish_shows_in_the_gap_and_the_staleness():
    fake = FakeRoles()

    async def two_steps():
        ppo = make(fake)
        source = sampler(fake)
        await fake.publish(0)
        await ppo.step(source, 1)
        fake.published, fake.version = -1.0, 0  # as if the publish after step 1 had not arrived
        return await ppo.step(source, 2)

    metrics = asyncio.run(two_steps()).metrics
    assert metrics["sync/logprob_gap"] == pytest.approx(0.125)
    assert metrics["sync/staleness"] == 1.0


@pytest.mark.parametrize(
    ("truncation", "last_reward", "bootstrap"),
    [
        (TruncationConfig(), 1.0, 0.0),
        (TruncationConfig(penalty=3.0), -2.0, 0.0),
        (TruncationConfig(handling="bootstrap"), 0.0, 2.0),
    ],
)
def test_a_cut_response(truncation, last_reward, bootstrap):
    fake = FakeRoles(unfinished=(1,))
    result = step(make(fake, lam=1.0, truncation=truncation), fake)
    assert result.estimate.rewards[1, 4] == last_reward
    assert result.estimate.returns[1, 4] == pytest.approx(last_reward + bootstrap)
    assert result.estimate.returns[0, 3] == 0.0, "the finished row is terminal"


def test_scores_are_clipped_and_reported_unclipped():
    fake = FakeRoles()
    result = step(make(fake, score=ScoreConfig(clip=0.25)), fake, rows=3)
    assert result.estimate.rewards.sum(1).tolist() == [0.0, 0.25, 0.25]
    assert result.metrics["objective/scores"] == 1.0


def test_the_part_of_the_kl_in_the_reward_is_of_its_kind():
    fake = FakeRoles(logprob=-1.0, reference=-1.5)
    result = step(make(fake, kl=KLConfig(beta=0.2, kind="k2")), fake)
    assert result.metrics["objective/non_score_reward"] == pytest.approx(-0.2 * 3 * 0.125)


def test_an_adaptive_beta_moves_towards_its_target():
    # KL is 1.5 nats a sequence and the target 0.5: the error is clipped to 0.2;
    # 2 sequences of a horizon of 10: beta *= 1 + 0.2 * 2 / 10
    fake = FakeRoles(logprob=-1.0, reference=-1.5)
    ppo = make(fake, kl=KLConfig(beta=0.1, target=0.5, horizon=10))
    assert step(ppo, fake).metrics["objective/beta"] == pytest.approx(0.1)
    assert ppo.kl_control.beta == pytest.approx(0.104)


def test_the_kl_is_in_the_reward_or_in_the_loss_and_never_in_both():
    for placement, in_reward, in_loss in (("reward", -0.3, 0.0), ("loss", 0.0, 0.2)):
        fake = FakeRoles(logprob=-1.0, reference=-1.5)
        result = step(make(fake, kl=KLConfig(beta=0.2, placement=placement)), fake)
        scores = result.experience.scores.total
        assert torch.allclose(result.estimate.rewards.sum(1) - scores, torch.tensor(in_reward))
        assert fake.kl_coefficients == [in_loss]
        assert result.metrics["objective/non_score_reward"] == pytest.approx(in_reward)


def test_the_running_normalisation_is_resumed():
    fake = FakeRoles()
    ppo = make(fake, score=ScoreConfig(normalise=True), kl=KLConfig(beta=0.0))
    first = step(ppo, fake, rows=3)  # scores 0, 1, 2
    assert first.estimate.rewards.sum(1).tolist() == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5])
    resumed = make(FakeRoles(), score=ScoreConfig(normalise=True))
    resumed.load_state_dict(ppo.state_dict())
    assert resumed.state_dict() == ppo.state_dict()
    assert resumed.shape_scores.count == 3


def test_the_critic_warms_up_alone():
    fake = FakeRoles()
    roles = Roles(CriticWarmup(fake.policy, 1), fake.critic, fake.frozen, fake, fake, fake)
    kl = KLConfig(beta=0.1, target=0.5, horizon=10)
    ppo = PPO(roles, AlgorithmConfig(critic_warmup_steps=1, kl=kl))

    async def two_steps():
        source = sampler(fake)
        await fake.publish(0)
        await ppo.step(source, 1)
        assert ppo.kl_control.beta == 0.1, "a policy that stands still says nothing about beta"
        return [await ppo.step(source, 2)]

    asyncio.run(two_steps())
    assert ppo.kl_control.beta != 0.1
    updates = [call for call in fake.calls if call.endswith("update")]
    assert updates[0] == "critic.update" and sorted(updates[1:]) == ["critic.update", "policy.update"]


def test_each_step_mixes_the_texts_of_its_prompts_number_in():
    seen = []

    class Policy:
        async def logprobs(self, rollouts):
            return rollouts.sampled_logprobs

        async def update(self, batch, step, kl_coefficient, texts):
            seen.append((step, texts))
            return {}

    def texts(first, last):
        return (f"text {n}" for n in range(first, last))

    async def steps():
        fake = FakeRoles()
        await fake.publish(0)
        mix = PretrainingMix(Policy(), Stream(texts, 3, 9), 2)
        # step 2 again, as policy and critic were begun anew; then a step that learnt nothing
        for step, number, learns in ((1, 3, 1), (2, 4, 1), (3, 5, 1), (2, 4, 1), (3, 5, 0), (3, 6, 1)):
            parts = prompts(2, first=2 * number).dealt(2)
            for part in reversed(parts) if number % 2 else parts:  # judged in parts, in either order
                await mix.logprobs(await fake.generate(part, 7))
            if learns:
                await mix.update(None, step, 0.0)

    asyncio.run(steps())
    assert seen == [(1, "text 3"), (2, "text 4"), (3, "text 5"), (2, "text 4"), (3, "text 6")]


async def test_the_first_error_ends_the_calls_beside_it_before_it_is_raised():
    ended = []

    async def long():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append("long")

    async def fails():
        await asyncio.sleep(0)
        raise StateLost("policy-0 died")

    async def gives(value):
        return value

    with pytest.raises(StateLost, match="policy-0 died"):
        await gather(gives(1), long(), fails())
    assert ended == ["long"]
    assert await gather(gives(1), gives(2)) == [1, 2]


async def test_where_memory_is_asked_for_too_no_call_outlives_the_first_error():
    ended = []

    class Group:
        def __init__(self, name):
            self.name = name

        async def peak_memory(self):
            if self.name == "policy":
                raise StateLost("policy-0 died")
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(self.name)

    with pytest.raises(StateLost, match="policy-0 died"):
        await _peak_memory({name: Group(name) for name in ("rollout", "policy")})
    assert ended == ["rollout"]


def test_parts_are_judged_while_the_rest_is_sampled_and_nothing_else_changes():
    async def run(parts: int):
        fake = FakeRoles(logprob=-1.0, reference=-1.5)
        await fake.publish(0)
        source = OnPolicy(fake, fake, Stream(lambda first, last: iter([prompts(5)]), 0, 1), 7, parts)
        return fake, await make(fake, kl=KLConfig(beta=0.2)).step(source, 1)

    (_, whole), (fake, found) = asyncio.run(run(1)), asyncio.run(run(2))
    asked = [call for call in fake.calls if call in ("reward.scores", "generated", "policy.update")]
    assert asked == ["reward.scores", "reward.scores", "generated", "policy.update"]
    for a, b in (
        (found.experience.rollouts, whole.experience.rollouts),
        (found.experience.scores, whole.experience.scores),
    ):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.SHAPES)
    for name in ("logprobs", "ref_logprobs"):
        assert torch.equal(getattr(found.experience, name), getattr(whole.experience, name))
    assert torch.equal(found.estimate.advantages, whole.estimate.advantages)
    assert found.metrics == whole.metrics | {"time/data_s": found.metrics["time/data_s"]}


def test_parts_whose_log_probs_are_the_samplers_tell_so_together():
    async def experiences():
        fake = FakeRoles()
        await fake.publish(0)
        roles = Roles(SampledLogprobs(fake.policy, 2), fake.critic, fake.frozen, fake, fake, fake)
        ppo = PPO(roles, AlgorithmConfig())
        source = OnPolicy(fake, fake, Stream(lambda first, last: iter([prompts(4)] * (last - first)), 0, 2), 7, 2)
        return [(await ppo.step(source, step)).experience for step in (1, 2)]

    proven, taken = asyncio.run(experiences())
    assert proven.logprobs is not proven.rollouts.sampled_logprobs, "the policy's own, to be compared"
    assert taken.logprobs is taken.rollouts.sampled_logprobs


def test_a_part_that_cannot_be_judged_ends_the_sampling():
    fake = FakeRoles(lost_at=[("policy.logprobs", 1)])

    async def run():
        await fake.publish(0)
        source = OnPolicy(fake, fake, Stream(lambda first, last: iter([prompts(4)]), 0, 1), 7, 2)
        with pytest.raises(StateLost):
            await make(fake).step(source, 1)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1 and "generated" not in fake.calls

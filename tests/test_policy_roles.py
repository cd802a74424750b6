"""The sampler's log-probs in the place of the policy's, by hand."""

import asyncio
from dataclasses import replace

import pytest
import torch

from rayrlhf.coordinator import PPO, Roles
from rayrlhf.errors import HealthError
from rayrlhf.policy_roles import SampledLogprobs
from rayrlhf.ppo_config import AlgorithmConfig
from rayrlhf.sampling import OnPolicy
from rayrlhf.stream import Stream
from rayrlhf.training.ppo_config import PolicyUpdateConfig
from tests.fakes import FakeRoles, prompts


def run(steps: int, every: int) -> tuple[FakeRoles, list[dict[str, float]]]:
    fake = FakeRoles()
    policy = SampledLogprobs(fake.policy, every)
    ppo = PPO(Roles(policy, fake.critic, fake.frozen, fake, fake, fake), AlgorithmConfig())
    stream = Stream(lambda first, last: (prompts(2, first=2 * n) for n in range(first, last)), 0, steps)
    sampler = OnPolicy(fake, fake, stream, seed=7)

    async def all_steps():
        await fake.publish(0)
        return [(await ppo.step(sampler, step)).metrics for step in range(1, steps + 1)]

    return fake, asyncio.run(all_steps())


def test_the_policy_is_asked_in_each_nth_step_and_only_these_tell_of_the_gap():
    fake, metrics = run(steps=5, every=3)
    asked = [step for step, some in enumerate(metrics, start=1) if "sync/logprob_gap" in some]
    assert asked == [1, 4] and fake.calls.count("policy.logprobs") == 2
    assert [some["sync/logprob_gap"] for some in metrics if "sync/logprob_gap" in some] == [0.0, 0.0]


def test_a_gap_ends_it_before_anything_is_learnt():
    fake = FakeRoles()
    asyncio.run(fake.publish(0))
    rollouts = asyncio.run(fake.generate(prompts(2), 7))
    near, far = (replace(rollouts, sampled_logprobs=rollouts.sampled_logprobs + gap) for gap in (0.0078125, 0.015625))
    policy = SampledLogprobs(fake.policy, every=2)
    assert torch.equal(asyncio.run(policy.logprobs(near)), asyncio.run(fake.policy.logprobs(near)))
    with pytest.raises(HealthError, match=r"step 1: .* 0\.0156 nats a token .*policy.recompute_logprobs_every=1"):
        asyncio.run(policy.logprobs(far))
    holes = torch.where(far.response_mask, near.sampled_logprobs, float("nan"))
    asyncio.run(policy.logprobs(replace(near, sampled_logprobs=holes)))  # what is no response is not compared


def test_weights_that_would_all_be_1_are_refused():
    with pytest.raises(ValueError, match="importance_cap=2 .* recompute_logprobs_every=4 .* leave one of them out"):
        PolicyUpdateConfig(recompute_logprobs_every=4, importance_cap=2.0)

"""PPO's step as the papers write it (Ziegler et al. 2019; Ouyang et al. 2022; Schulman et al. 2017).

        prompts
           |
        rollout.generate                      vLLM, weights of version k
           |
     +-----+---------+------------+
  policy.logprobs  reference.logprobs  critic.values  reward.scores       side by side
     +-----+---------+------------+
           |
     token rewards, advantages                here, on CPU tensors
           |
     +-----+-------+
  policy.update  critic.update                side by side
     +-----+-------+
           |
     publisher.publish(k + 1)                 the engines hold the new weights when it returns

The roles are what rayrlhf/roles.py says; the coordinator knows neither Ray nor where they run.
"""

from __future__ import annotations

from asyncio import gather
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrlhf.algorithms.advantages import gae
from rayrlhf.algorithms.kl import kl_estimate
from rayrlhf.algorithms.kl_control import AdaptiveKL, FixedKL
from rayrlhf.algorithms.masking import masked_whiten
from rayrlhf.algorithms.rewards import token_rewards
from rayrlhf.batches import CriticBatch, Experience, PolicyBatch, Prompts, Scores, Values
from rayrlhf.ppo_config import AlgorithmConfig, TruncationConfig
from rayrlhf.roles import Critic, Metrics, Policy, Publisher, Reference, Reward, Rollout


@dataclass(frozen=True)
class Roles:
    """Everything a step talks to."""

    policy: Policy
    critic: Critic
    reference: Reference
    reward: Reward
    rollout: Rollout
    publisher: Publisher


@dataclass(frozen=True)
class StepResult:
    """What one step saw and did; `rewards`, `advantages`, `returns` are f32 `[B, T]`."""

    experience: Experience
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    beta: float
    step: int
    learned: Metrics


class PPO:
    """One RL step a call."""

    def __init__(self, roles: Roles, config: AlgorithmConfig, seed: int) -> None:
        self.roles, self.config, self.seed = roles, config, seed
        kl = config.kl
        self.kl_control = FixedKL(kl.beta) if kl.target is None else AdaptiveKL(kl.beta, kl.target, kl.horizon)

    async def step(self, prompts: Prompts, step: int) -> StepResult:
        """Sample, judge, learn, publish; `step` counts from 1 and becomes the weights' version."""
        roles, config, beta = self.roles, self.config, self.kl_control.beta

        rollouts = await roles.rollout.generate(prompts, self.seed)
        mask = rollouts.response_mask
        logprobs, ref_logprobs, values, scores = await gather(
            roles.policy.logprobs(rollouts),
            roles.reference.logprobs(rollouts),
            roles.critic.values(rollouts),
            roles.reward.scores(rollouts),
        )
        experience = Experience(rollouts, logprobs, ref_logprobs, scores, values)

        kl = kl_estimate(logprobs, ref_logprobs, kind="k1")
        ends, bootstrap = ends_of_responses(scores, values, rollouts.finished, config.score_clip, config.truncation)
        rewards = token_rewards(ends, kl, mask, beta)
        advantages, returns = gae(rewards, values.values, mask, config.gamma, config.lam, bootstrap)
        advantages = masked_whiten(advantages, mask)

        common = (rollouts.tokens, rollouts.lengths, mask)
        policy_metrics, critic_metrics = await gather(
            roles.policy.update(
                PolicyBatch(*common, logprobs, ref_logprobs, rollouts.sampled_logprobs, advantages), step
            ),
            roles.critic.update(CriticBatch(*common, values.values, returns), step),
        )
        self.kl_control.update(float(torch.where(mask, kl, 0.0).sum(1).mean()), len(rollouts))
        sync = await roles.publisher.publish(step)
        return StepResult(experience, rewards, advantages, returns, beta, step, policy_metrics | critic_metrics | sync)


def ends_of_responses(
    scores: Scores, values: Values, finished: Tensor, clip: float | None, truncation: TruncationConfig
) -> tuple[Tensor, Tensor]:
    """(score on the last response token, value of the state after it), both f32 `[B]`.

    A finished response is terminal: its score, and 0 after it.  One that the length limit cut is
    not (Pardo et al. 2018, "Time Limits in Reinforcement Learning"): by `truncation.handling` its
    score less a penalty ends it, or the critic's value takes the place of the score.
    """
    ends = scores.total if clip is None else scores.total.clamp(-clip, clip)
    zero = torch.zeros_like(ends)
    if truncation.handling == "penalty":
        return torch.where(finished, ends, ends - truncation.penalty), zero
    return torch.where(finished, ends, zero), torch.where(finished, zero, values.bootstrap)

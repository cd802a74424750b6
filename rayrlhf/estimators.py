"""From scores to advantages: with a critic (GAE) or without (GRPO, Dr. GRPO, RLOO, REINFORCE++).

An estimator is chosen once, when the step is built, and called as
`estimator(experience, scores, beta) -> Estimate`: `scores` f32 `[B]` are the shaped ones, `beta` the
weight of the KL in the reward (0 where it is in the loss instead).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrlhf.algorithms.advantages import gae, grpo, rloo
from rayrlhf.algorithms.kl import kl_estimate
from rayrlhf.algorithms.masking import masked_whiten
from rayrlhf.algorithms.rewards import token_rewards
from rayrlhf.batches import CriticBatch, Experience, Rollouts, Values
from rayrlhf.ppo_config import AlgorithmConfig, TruncationConfig
from rayrlhf.roles import Metrics


@dataclass(frozen=True)
class Estimate:
    """What each sequence's end earned, f32 `[B]`; and f32 `[B, T]` the rewards (that, and the KL's part), the
    advantages the policy learns from, the returns the critic learns from (0 without a critic)."""

    ends: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor


Estimator = Callable[[Experience, Tensor, float], Estimate]


def build(config: AlgorithmConfig) -> Estimator:
    """The estimator that `config.estimator` names."""
    if config.estimator == "gae":
        return ActorCritic(config)
    if config.estimator == "reinforce_pp":
        return ReinforcePP(config)
    return GroupBaseline(config)


class _Estimator:
    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config

    def rewards(self, experience: Experience, ends: Tensor, beta: float) -> Tensor:
        """`ends` on the last response token, -beta * KL on each."""
        kl = kl_estimate(experience.logprobs, experience.ref_logprobs, self.config.kl_kind)
        return token_rewards(ends, kl, experience.rollouts.response_mask, beta)

    def whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        return masked_whiten(advantages, mask) if self.config.whiten else advantages


class ActorCritic(_Estimator):
    """Generalised advantage estimation with the critic's values (Schulman et al. 2016)."""

    def __call__(self, experience: Experience, scores: Tensor, beta: float) -> Estimate:
        config, mask = self.config, experience.rollouts.response_mask
        ends, bootstrap = ends_of_responses(scores, experience, config.truncation)
        rewards = self.rewards(experience, ends, beta)
        advantages, returns = gae(rewards, experience.values.values, mask, config.gamma, config.lam, bootstrap)
        return Estimate(ends, rewards, self.whitened(advantages, mask), returns)


class ReinforcePP(_Estimator):
    """The sum of the rewards from each token on, normalised over the batch (Hu et al. 2025, REINFORCE++)."""

    def __call__(self, experience: Experience, scores: Tensor, beta: float) -> Estimate:
        mask = experience.rollouts.response_mask
        ends, _ = ends_of_responses(scores, experience, self.config.truncation)
        rewards = self.rewards(experience, ends, beta)
        # values of 0 and lambda 1 leave of GAE the discounted sum of what follows
        sums, _ = gae(rewards, torch.zeros_like(rewards), mask, self.config.gamma, lam=1.0)
        return Estimate(ends, rewards, self.whitened(sums, mask), torch.zeros_like(rewards))


class GroupBaseline(_Estimator):
    """Each sample against the others of its prompt; every token of it gets the same advantage.

    GRPO and Dr. GRPO see the score alone, RLOO the score less beta times the sequence's summed KL
    where the KL is in the reward (Ahmadian et al. 2024).
    """

    def __call__(self, experience: Experience, scores: Tensor, beta: float) -> Estimate:
        config, mask = self.config, experience.rollouts.response_mask
        ends, _ = ends_of_responses(scores, experience, config.truncation)
        rewards = self.rewards(experience, ends, beta)
        if config.estimator == "rloo":
            advantages = rloo(rewards.sum(1), config.group_size)
        else:
            advantages = grpo(ends, config.group_size, scale_by_std=config.estimator == "grpo")
        of_tokens = torch.where(mask, advantages[:, None], 0.0)
        if config.truncation.level == "token":
            cut = torch.where(experience.rollouts.finished, 0.0, -config.truncation.penalty)
            of_tokens += token_rewards(cut, torch.zeros_like(rewards), mask, 0.0)
        return Estimate(ends, rewards, of_tokens, torch.zeros_like(rewards))


def ends_of_responses(scores: Tensor, experience: Experience, truncation: TruncationConfig) -> tuple[Tensor, Tensor]:
    """(score on the last response token, value of the state after it), both f32 `[B]`.

    A finished response is terminal: its score, and 0 after it.  One that the length limit cut is
    not (Pardo et al. 2018, "Time Limits in Reinforcement Learning"): by `truncation.handling` its
    score less a penalty (which with `level` token is not counted here), or the penalty alone, ends it, or
    the critic's value takes the place of the score.
    """
    finished, zero = experience.rollouts.finished, torch.zeros_like(scores)
    if truncation.handling == "replace":
        return torch.where(finished, scores, -truncation.penalty), zero
    if truncation.handling == "penalty":
        penalty = truncation.penalty if truncation.level == "sequence" else 0.0
        return torch.where(finished, scores, scores - penalty), zero
    return torch.where(finished, scores, zero), torch.where(finished, zero, experience.values.bootstrap)


class NoCritic:
    """In the critic's place where the estimator needs none: no actor, values of 0, nothing to learn."""

    async def values(self, rollouts: Rollouts) -> Values:
        return Values(torch.zeros(rollouts.tokens.shape), torch.zeros(len(rollouts)))

    async def update(self, batch: CriticBatch, step: int) -> Metrics:
        return {}

    async def save(self, directory: str) -> None:
        """Nothing to keep."""

    async def load(self, directory: str, lr_scale: float = 1.0) -> None:
        """Nothing was kept."""

    async def restart(self) -> None:
        """There is no process."""

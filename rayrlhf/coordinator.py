"""PPO's step as the papers write it (Ziegler et al. 2019; Ouyang et al. 2022; Schulman et al. 2017).

        sampler.next                          rollouts of vLLM, weights of version k (rayrlhf/sampling.py);
           |                                  in parts, the first are judged while the rest is sampled
     +-----+---------+------------+
  policy.logprobs  reference.logprobs  critic.values  reward.scores       side by side
     +-----+---------+------------+
           |
     token rewards, advantages                here, on CPU tensors
           |
     +-----+-------+------------+
  policy.update  critic.update  metrics       side by side
     +-----+-------+------------+
           |
     sampler.publish(k + 1)                   the engines sample from the new weights; when, the sampler knows

The roles are what rayrlhf/roles.py says; the coordinator knows neither Ray nor where they run.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

import torch

from rayrlhf import estimators
from rayrlhf.algorithms.kl import kl_estimate
from rayrlhf.algorithms.kl_control import AdaptiveKL, FixedKL
from rayrlhf.algorithms.score_shaping import ScoreShaping
from rayrlhf.batches import CriticBatch, Experience, PolicyBatch, Rollouts
from rayrlhf.errors import DivergenceError
from rayrlhf.ppo_config import AlgorithmConfig
from rayrlhf.ppo_metrics import step_metrics
from rayrlhf.roles import Critic, Metrics, Policy, Publisher, Reference, Reward, Rollout
from rayrlhf.sampling import Sampler
from rayrlhf.side_by_side import gather


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
    """What one step saw and did."""

    experience: Experience
    estimate: estimators.Estimate
    metrics: Metrics


class PPO:
    """One RL step a call: PPO, or with another estimator in its place GRPO, RLOO, REINFORCE++."""

    def __init__(self, roles: Roles, config: AlgorithmConfig) -> None:
        self.roles, self.config = roles, config
        kl = config.kl
        self.kl_control = FixedKL(kl.beta) if kl.target is None else AdaptiveKL(kl.beta, kl.target, kl.horizon)
        self.shape_scores = ScoreShaping(config.score.clip, config.score.normalise)
        self.estimate = estimators.build(config)

    async def step(self, sampler: Sampler, step: int) -> StepResult:
        """Sample, judge, learn, publish; `step` counts from 1 and becomes the weights' version.

        Raises DivergenceError, before anything is learnt, where a score, log-prob or value is not finite.
        """
        roles, config, beta = self.roles, self.config, self.kl_control.beta

        judged: list[Experience] = []
        sampling: Metrics = {}
        async with aclosing(sampler.next(step)) as parts:
            async for sampled in parts:
                judged.append(await self._judge(sampled.rollouts))
                sampling |= sampled.metrics
        experience = Experience.joined(judged)
        _check_finite(experience, step)
        rollouts, logprobs, ref_logprobs = experience.rollouts, experience.logprobs, experience.ref_logprobs
        mask = rollouts.response_mask

        beta_in_reward, beta_in_loss = (0.0, beta) if config.kl_in_loss else (beta, 0.0)
        estimate = self.estimate(experience, self.shape_scores(experience.scores.total), beta_in_reward)

        common = (rollouts.tokens, rollouts.lengths, mask)
        is_stale = sampler.max_staleness > 0
        learned_policy, learned_critic, seen = await gather(
            roles.policy.update(
                PolicyBatch(*common, logprobs, ref_logprobs, rollouts.sampled_logprobs, estimate.advantages),
                step,
                beta_in_loss,
            ),
            roles.critic.update(CriticBatch(*common, experience.values.values, estimate.returns), step),
            # while the roles learn: at 1,024 GPUs it takes a second
            asyncio.to_thread(step_metrics, experience, estimate, beta, step, config.group_size, is_stale),
        )
        if step > config.critic_warmup_steps:  # while the policy stands still its KL of 0 would only lower beta
            kl = torch.where(mask, kl_estimate(logprobs, ref_logprobs, kind="k1"), 0.0).sum(1).mean()
            self.kl_control.update(kl, len(rollouts))
        sync = await sampler.publish(step)
        return StepResult(experience, estimate, seen | learned_policy | learned_critic | sync | sampling)

    async def _judge(self, rollouts: Rollouts) -> Experience:
        """What every role says of some rows."""
        roles = self.roles
        logprobs, ref_logprobs, values, scores = await gather(
            roles.policy.logprobs(rollouts),
            roles.reference.logprobs(rollouts),
            roles.critic.values(rollouts),
            roles.reward.scores(rollouts),
        )
        return Experience(rollouts, logprobs, ref_logprobs, scores, values)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """What a checkpoint must keep beside the roles' own."""
        return {"kl_control": self.kl_control.state_dict(), "score_shaping": self.shape_scores.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Restore `state_dict()`."""
        self.kl_control.load_state_dict(state["kl_control"])
        self.shape_scores.load_state_dict(state["score_shaping"])


def _check_finite(experience: Experience, step: int) -> None:
    """DivergenceError names the role whose numbers are none."""
    mask = experience.rollouts.response_mask
    for role, what, values, counted in (
        ("reward", "scores", experience.scores.total, None),
        ("policy", "log-probs", experience.logprobs, mask),
        ("reference", "log-probs", experience.ref_logprobs, mask),
        ("critic", "values", experience.values.values, mask),
    ):
        bad = ~values.isfinite() if counted is None else ~values.isfinite() & counted
        if bad.any():
            rows = bad.view(len(bad), -1).any(1).nonzero().flatten().tolist()
            raise DivergenceError(
                f"{int(bad.sum())} {what} of the {role} are not finite at step {step} (first rows: {rows[:8]}): it "
                "overflowed, or its weights are no numbers any more. Nothing was learnt from them. A lower learning "
                "rate, float32 for the model, or another one may help"
            )

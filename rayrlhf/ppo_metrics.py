"""What one PPO step says of itself, under TRL's names where TRL has one."""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.algorithms.kl import kl_estimate
from rayrlhf.algorithms.masking import masked_mean
from rayrlhf.batches import ALONE, FAILED, Experience, Rollouts
from rayrlhf.estimators import Estimate
from rayrlhf.ngrams import Responses, distinct, repetition

# label of each metric on the console line
CONSOLE = {
    "objective/scores": "score",
    "objective/kl": "kl",
    "objective/entropy": "entropy",
    "rollout/length": "length",
    "loss/policy_avg": "policy",
    "loss/value_avg": "value",
    "sync/logprob_gap": "gap",
    "sync/logprob_drift": "drift",
    "time/step_s": "s",
}


def speeds(metrics: dict[str, float]) -> dict[str, float]:
    """Tokens a second of a step and of its sampling, by the step's metrics and seconds.  Not of sampling ahead: its
    seconds are of other responses than the step's."""
    tokens, is_ahead = metrics["rollout/tokens"], "sync/logprob_drift" in metrics
    sampling_s = 0.0 if is_ahead else metrics.get("time/rollout_generate_s")
    found = {"perf/rollout_tokens_per_s": tokens / metrics["time/step_s"]}
    return found | ({"perf/generate_tokens_per_s": tokens / sampling_s} if sampling_s else {})


def logprob_gap(rollouts: Rollouts, logprobs: Tensor, name: str) -> dict[str, float]:
    """Mean and (`name`_max) largest over response tokens of |log-prob as the sampling engine returned it - `logprobs`,
    the policy's own `[B, T]`|."""
    mask, gap = rollouts.response_mask, (rollouts.sampled_logprobs - logprobs).abs()
    return {name: float(masked_mean(gap, mask)), f"{name}_max": float(torch.where(mask, gap, 0.0).max())}


def step_metrics(
    experience: Experience, estimate: Estimate, beta: float, step: int, group_size: int = 1, is_stale: bool = False
) -> dict[str, float]:
    """Flat metrics of step `step`, whose rollouts are groups of `group_size` rows and whose KL weighed `beta`.

    KL and rewards are means over sequences of sums over tokens, in nats.

    `sync/logprob_gap` is the mean over response tokens of |log-prob as the sampling engine returned
    it - the policy's own|: above 0.01 in float32 the engine does not hold the policy's weights.  With `is_stale` it is
    not meant to, and the same number is `sync/logprob_drift`: how far the policy has moved since.  A step that takes
    the engine's for the policy's own (policy.recompute_logprobs_every) has neither.
    """
    rollouts = experience.rollouts
    mask = rollouts.response_mask
    kl = kl_estimate(experience.logprobs, experience.ref_logprobs, kind="k1")
    lengths = mask.sum(1).float()
    sequence_kl = torch.where(mask, kl, 0.0).sum(1)
    scores = experience.scores
    metrics = {
        "objective/scores": scores.total.mean(),
        "objective/scores_std": scores.total.std(correction=0),
        "objective/kl": sequence_kl.mean(),
        "objective/kl_per_token": masked_mean(kl, mask),
        "objective/kl_token_max_abs": torch.where(mask, kl, 0.0).abs().max(),
        "objective/non_score_reward": (estimate.rewards.sum(1) - estimate.ends).mean(),
        "objective/rlhf_reward": estimate.rewards.sum(1).mean(),
        "objective/beta": torch.tensor(beta),
        "rollout/length": lengths.mean(),
        "rollout/length_max": lengths.max(),
        "rollout/finished_share": rollouts.finished.float().mean(),
        "rollout/tokens": lengths.sum(),
        "sync/staleness": (step - 1 - rollouts.policy_version).float().mean(),
    }
    responses = Responses.of(rollouts.tokens, mask)
    metrics["rollout/repetition_4"] = torch.tensor(repetition(responses, 4))
    metrics["rollout/distinct_2"] = torch.tensor(distinct(responses, 2))
    if group_size > 1:
        groups = scores.total.view(-1, group_size)
        metrics["objective/frac_reward_zero_std"] = (groups == groups[:, :1]).all(1).float().mean()
    for index, name in enumerate(scores.names):
        part = scores.components[:, index]
        if name.startswith((FAILED, ALONE)):
            metrics[f"objective/{name}"] = part.sum()
        else:
            metrics[f"objective/scores_{name}"] = part.mean()
    gap: dict[str, float] = {}
    if experience.logprobs is not rollouts.sampled_logprobs:
        gap = logprob_gap(rollouts, experience.logprobs, "sync/logprob_drift" if is_stale else "sync/logprob_gap")
    return {name: float(value) for name, value in metrics.items()} | gap

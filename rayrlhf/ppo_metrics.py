"""What one PPO step says of itself, under TRL's names where TRL has one."""

from __future__ import annotations

import torch

from rayrlhf.algorithms.kl import kl_estimate
from rayrlhf.algorithms.masking import masked_mean
from rayrlhf.batches import ALONE, FAILED
from rayrlhf.coordinator import StepResult

# label of each metric on the console line
CONSOLE = {
    "objective/scores": "score",
    "objective/kl": "kl",
    "objective/entropy": "entropy",
    "rollout/length": "length",
    "loss/policy_avg": "policy",
    "loss/value_avg": "value",
    "sync/logprob_gap": "gap",
    "time/step_s": "s",
}


def step_metrics(result: StepResult) -> dict[str, float]:
    """Flat metrics of one step.  KL and rewards are means over sequences of sums over tokens, in nats.

    `sync/logprob_gap` is the mean over response tokens of |log-prob as the sampling engine returned
    it - the policy's own|: above 0.01 in float32 the engine does not hold the policy's weights.
    """
    experience, rollouts = result.experience, result.experience.rollouts
    mask = rollouts.response_mask
    kl = kl_estimate(experience.logprobs, experience.ref_logprobs, kind="k1")
    gap = (rollouts.sampled_logprobs - experience.logprobs).abs()
    lengths = mask.sum(1).float()
    sequence_kl = torch.where(mask, kl, 0.0).sum(1)
    scores = experience.scores
    metrics = {
        "objective/scores": scores.total.mean(),
        "objective/scores_std": scores.total.std(correction=0),
        "objective/kl": sequence_kl.mean(),
        "objective/kl_token_max_abs": torch.where(mask, kl, 0.0).abs().max(),
        "objective/non_score_reward": (result.estimate.rewards.sum(1) - result.estimate.ends).mean(),
        "objective/rlhf_reward": result.estimate.rewards.sum(1).mean(),
        "objective/beta": torch.tensor(result.beta),
        "rollout/length": lengths.mean(),
        "rollout/length_max": lengths.max(),
        "rollout/finished_share": rollouts.finished.float().mean(),
        "rollout/tokens": lengths.sum(),
        "sync/logprob_gap": masked_mean(gap, mask),
        "sync/logprob_gap_max": torch.where(mask, gap, 0.0).max(),
        "sync/staleness": (result.step - 1 - rollouts.policy_version).float().mean(),
    }
    for index, name in enumerate(scores.names):
        part = scores.components[:, index]
        if name.startswith((FAILED, ALONE)):
            metrics[f"objective/{name}"] = part.sum()
        else:
            metrics[f"objective/scores_{name}"] = part.mean()
    return {name: float(value) for name, value in metrics.items()} | result.learned

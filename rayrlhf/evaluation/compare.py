"""One model's held-out responses as numbers, and two models' against each other.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrlhf.batches import Rollouts
from rayrlhf.evaluation.metrics import (
    distinct_n,
    known_word_share,
    perplexity,
    positive_share,
    repetition,
    win_rate,
)


@dataclass(frozen=True)
class Side:
    """What one model answered to N prompts, one response each, and what was said about it.

    `ref_logprobs` are the baseline's at the sampling temperature, `base_logprobs` the base model's
    at temperature 1, both f32 `[N, T]`; `gold` is None where there is no gold function.
    """

    rollouts: Rollouts
    prompts: list[str]
    responses: list[str]
    scores: list[float]
    ref_logprobs: Tensor
    base_logprobs: Tensor
    gold: list[float] | None


def side_metrics(side: Side, vocabulary: set[str] | None) -> dict[str, float]:
    """Metrics of one side by their short names.

    `kl` is the mean over sequences of the summed log-ratio model / baseline, a sample estimate of
    KL(model || baseline) in nats a sequence; `perplexity` is per response token, under the base model.
    """
    mask, finished = side.rollouts.response_mask, side.rollouts.finished
    log_ratio = torch.where(mask, side.rollouts.sampled_logprobs - side.ref_logprobs, 0.0)
    base_sum = torch.where(mask, side.base_logprobs, 0.0).double().sum()
    metrics = {
        "score": sum(side.scores) / len(side.scores),
        "kl": float(log_ratio.sum(1).mean()),
        "length": float(mask.sum(1).double().mean()),
        "finished_share": float(finished.double().mean()),
        "distinct_2": distinct_n(side.responses, 2),
        "repetition_2": repetition(side.responses, 2),
        "perplexity": perplexity(float(base_sum), int(mask.sum())),
    }
    if side.gold is not None:
        metrics |= {
            "gold": sum(side.gold) / len(side.gold),
            "gold_positive_share": positive_share(side.gold),
        }
    if vocabulary is not None:
        metrics["known_word_share"] = known_word_share(side.responses, vocabulary)
    return metrics


def compare(policy: Side, baseline: Side, vocabulary: set[str] | None, seed: int) -> dict[str, float]:
    """`eval/policy/*`, `eval/baseline/*` and `eval/win_rate_{reward,gold}` with `_low` and `_high`.

    Row i of both sides answers the same prompt; `seed` is the bootstrap's.
    """
    metrics: dict[str, float] = {}
    for name, side in (("policy", policy), ("baseline", baseline)):
        values = side_metrics(side, vocabulary)
        metrics |= {f"eval/{name}/{key}": value for key, value in values.items()}
    judges = {"reward": (policy.scores, baseline.scores)}
    if policy.gold is not None and baseline.gold is not None:
        judges["gold"] = (policy.gold, baseline.gold)
    for judge, (ours, theirs) in judges.items():
        found = win_rate(ours, theirs, seed)
        metrics |= {
            f"eval/win_rate_{judge}": found.rate,
            f"eval/win_rate_{judge}_low": found.low,
            f"eval/win_rate_{judge}_high": found.high,
        }
    return metrics


def sample_rows(policy: Side, baseline: Side) -> list[dict[str, str | float | None]]:
    """A row a prompt: prompt, and for both sides the response, `_score` and `_gold`."""
    rows = []
    for i, prompt in enumerate(policy.prompts):
        row: dict[str, str | float | None] = {"prompt": prompt}
        for name, side in (("baseline", baseline), ("policy", policy)):
            row[name], row[f"{name}_score"] = side.responses[i], side.scores[i]
            row[f"{name}_gold"] = None if side.gold is None else side.gold[i]
        rows.append(row)
    return rows

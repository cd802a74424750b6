"""What a step says of its responses, by hand."""

import pytest
import torch

from rayrlhf.batches import Experience, Rollouts, Scores, Values
from rayrlhf.estimators import Estimate
from rayrlhf.ppo_metrics import step_metrics

A, B, C, D = 5, 6, 7, 8


def metrics_of(scores: list[float], names=("function",), components=None, group_size=1) -> dict[str, float]:
    """Of four rows of a prompt token and three response tokens, but for the last with one; log-ratios of 0.5 and -1."""
    tokens = torch.tensor([[1, A, B, A], [1, A, B, A], [1, C, C, C], [1, D, 0, 0]])
    mask = torch.tensor([[False, True, True, True]] * 3 + [[False, True, False, False]])
    zeros, rows = torch.zeros(4, 4), torch.arange(4)
    ratio = torch.tensor([0.5, 0.5, 0.5, -1.0])[:, None]
    rollouts = Rollouts(tokens, mask.sum(1) + 1, mask, zeros, rows > 0, rows, rows * 0)
    total = torch.tensor(scores)
    given = Scores(total, total[:, None] if components is None else components, names)
    experience = Experience(rollouts, torch.where(mask, ratio, 0.0), zeros, given, Values(zeros, torch.zeros(4)))
    return step_metrics(experience, Estimate(torch.zeros(4), zeros, zeros, zeros), 0.1, 1, group_size)


def test_responses_and_groups_of_a_step() -> None:
    metrics = metrics_of([1.0, 1.0, 0.5, 0.0], group_size=2)
    assert metrics["objective/kl_per_token"] == pytest.approx((9 * 0.5 - 1.0) / 10)
    assert metrics["rollout/repetition_4"] == 0.0
    assert metrics["rollout/distinct_2"] == pytest.approx(3 / 6), "AB BA AB BA CC CC"
    assert metrics["objective/frac_reward_zero_std"] == 0.5
    assert "objective/frac_reward_zero_std" not in metrics_of([1.0] * 4)
    assert metrics_of([1.0] * 4, group_size=4)["objective/frac_reward_zero_std"] == 1.0


def test_components_that_count_rows_are_summed() -> None:
    components = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [2.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    metrics = metrics_of([1.0] * 4, ("function", "failed_timeout", "scored_alone"), components)
    assert metrics["objective/scores_function"] == 1.0
    assert metrics["objective/failed_timeout"] == 2.0 and metrics["objective/scored_alone"] == 3.0
    assert "objective/scores_failed_timeout" not in metrics

import statistics

import pytest
import torch

from rayrlhf.algorithms.advantages import gae, grpo, rloo

REWARDS = torch.tensor([[0.0, 0.0, 1.0]])
VALUES = torch.tensor([[0.5, 0.6, 0.7]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_gae_by_hand():
    # delta = 0.9 * 0.6 - 0.5, 0.9 * 0.7 - 0.6, 1 - 0.7 = 0.04, 0.03, 0.3; gamma * lam = 0.72
    # A_2 = 0.3; A_1 = 0.03 + 0.72 * 0.3 = 0.246; A_0 = 0.04 + 0.72 * 0.246 = 0.21712
    advantages, returns = gae(REWARDS, VALUES, ALL, gamma=0.9, lam=0.8)
    torch.testing.assert_close(advantages, torch.tensor([[0.21712, 0.246, 0.3]]))
    torch.testing.assert_close(returns, torch.tensor([[0.71712, 0.846, 1.0]]))


def test_bootstrap_by_hand():
    # the last delta is 1 + 0.9 * 2 - 0.7 = 2.1; A_1 = 0.03 + 0.72 * 2.1; A_0 = 0.04 + 0.72 * 1.542
    advantages, returns = gae(REWARDS, VALUES, ALL, 0.9, 0.8, bootstrap=torch.tensor([2.0]))
    torch.testing.assert_close(advantages, torch.tensor([[1.15024, 1.542, 2.1]]))
    torch.testing.assert_close(returns, torch.tensor([[1.65024, 2.142, 2.8]]))


def test_the_ends_of_lambda():
    one_step, _ = gae(REWARDS, VALUES, ALL, gamma=0.9, lam=0.0)
    torch.testing.assert_close(one_step, torch.tensor([[0.04, 0.03, 0.3]]))
    _, monte_carlo = gae(REWARDS, VALUES, ALL, gamma=1.0, lam=1.0)
    torch.testing.assert_close(monte_carlo, torch.tensor([[1.0, 1.0, 1.0]]))


def slow_gae(rewards, values, gamma, lam, bootstrap):
    """A_t = sum over l of (gamma lam)^l delta_{t+l}, of one row without holes, as the paper writes it."""
    n = len(rewards)
    following = [*values[1:], bootstrap]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


def test_gae_equals_the_slow_sum_over_the_collapsed_sequence(ragged_mask, normal):
    for seed in range(8):
        mask = ragged_mask(5, 10, seed)
        rewards, values, bootstrap = normal(seed, 5, 10), normal(seed + 50, 5, 10), normal(seed + 100, 5)
        advantages, returns = gae(rewards, values, mask, 0.97, 0.9, bootstrap)
        for b in range(5):
            inside = mask[b]
            expected = slow_gae(rewards[b, inside].tolist(), values[b, inside].tolist(), 0.97, 0.9, bootstrap[b].item())
            assert advantages[b, inside].tolist() == pytest.approx(expected)
            torch.testing.assert_close(returns[b, inside], advantages[b, inside] + values[b, inside])
        assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_gae_checks_its_arguments():
    with pytest.raises(ValueError, match=r"bootstrap has shape \[1, 1\]"):
        gae(REWARDS, VALUES, ALL, 1.0, 1.0, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="hold no True"):
        gae(REWARDS, VALUES, ~ALL, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"values has shape \[1, 2\]"):
        gae(REWARDS, VALUES[:, :2], ALL, 1.0, 1.0)


def test_grpo_by_hand():
    # group 1: mean 2, unbiased std sqrt(2); group 2: mean 3, std sqrt(8)
    scores = torch.tensor([1.0, 3.0, 5.0, 1.0])
    a, b = 1 / (2**0.5 + 1e-4), 2 / (8**0.5 + 1e-4)
    torch.testing.assert_close(grpo(scores, 2), torch.tensor([-a, a, b, -b]))
    assert grpo(scores, 2, scale_by_std=False).tolist() == [-1.0, 1.0, 2.0, -2.0]


def test_grpo_against_the_statistics_module(normal):
    scores = normal(0, 12)
    result = grpo(scores, 4).tolist()
    for start in range(0, 12, 4):
        group = scores[start : start + 4].tolist()
        mean, std = statistics.fmean(group), statistics.stdev(group)
        assert result[start : start + 4] == pytest.approx([(s - mean) / (std + 1e-4) for s in group])


def test_rloo_by_hand():
    # each score less the mean of the other two
    scores = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    assert rloo(scores, 3).tolist() == [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]


def test_rloo_is_the_centred_score_times_g_over_g_minus_1(normal):
    scores = normal(4, 10)
    torch.testing.assert_close(rloo(scores, 5), grpo(scores, 5, scale_by_std=False) * 5 / 4)


@pytest.mark.parametrize("estimate", [grpo, rloo, lambda s, g: grpo(s, g, scale_by_std=False)])
def test_a_group_of_equal_scores_gives_exact_zeros(estimate):
    # the float32 mean of three 5.7 is 5e-7 off 5.7, which over the eps would be a signal of 0.005
    result = estimate(torch.tensor([5.7, 5.7, 5.7, 1.0, 2.0, 3.0]), 3)
    assert result[:3].tolist() == [0.0, 0.0, 0.0]
    assert (result[3:] != 0).any()


@pytest.mark.parametrize("estimate", [grpo, rloo])
def test_group_sizes_that_do_not_fit_are_refused(estimate):
    for size in (1, 4, 0):
        with pytest.raises(ValueError, match=f"6 scores do not make groups of {size}"):
            estimate(torch.zeros(6), size)
    with pytest.raises(ValueError, match=r"must have shape \[B\], got \[3, 2\]"):
        estimate(torch.zeros(3, 2), 2)

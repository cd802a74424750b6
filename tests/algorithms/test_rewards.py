import pytest
import torch

from rayrlhf.algorithms.rewards import last_response_index, token_rewards

NAN = float("nan")


def test_by_hand_with_prompt_padding_and_a_hole():
    mask = torch.tensor([[False, True, True, False], [True, False, True, True]])
    kl = torch.tensor([[NAN, 1.0, -2.0, NAN], [0.5, NAN, 0.0, 3.0]])
    expected = torch.tensor([[0.0, -0.1, 0.2 + 5.0, 0.0], [-0.05, 0.0, 0.0, -0.3 - 1.0]])
    torch.testing.assert_close(token_rewards(torch.tensor([5.0, -1.0]), kl, mask, beta=0.1), expected)
    assert last_response_index(mask).tolist() == [2, 3]


def test_the_score_is_on_the_last_response_token_and_not_on_padding_after_it():
    mask = torch.tensor([[True, False, False, False]])
    result = token_rewards(torch.tensor([7.0]), torch.zeros(1, 4), mask, beta=1.0)
    assert result.tolist() == [[7.0, 0.0, 0.0, 0.0]]


def test_against_a_slow_loop(ragged_mask, normal):
    for seed in range(5):
        mask, kl, scores = ragged_mask(5, 8, seed), normal(seed, 5, 8), normal(seed + 50, 5)
        expected = torch.zeros(5, 8, dtype=torch.float64)
        for b in range(5):
            inside = [t for t in range(8) if mask[b, t]]
            for t in inside:
                expected[b, t] = -0.3 * kl[b, t]
            expected[b, inside[-1]] += scores[b]
        torch.testing.assert_close(token_rewards(scores, kl, mask, 0.3), expected)


def test_the_sum_of_a_row_is_the_score_less_beta_times_its_kl(ragged_mask, normal):
    mask, kl, scores = ragged_mask(4, 6, 9), normal(9, 4, 6), normal(10, 4)
    total = token_rewards(scores, kl, mask, 0.2).sum(1)
    torch.testing.assert_close(total, scores - 0.2 * (kl * mask).sum(1))


def test_wrong_shapes_and_empty_rows_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"scores have shape \[2, 1\]"):
        token_rewards(torch.zeros(2, 1), torch.zeros(2, 3), mask, 0.1)
    with pytest.raises(ValueError, match="hold no True"):
        token_rewards(torch.zeros(2), torch.zeros(2, 3), ~mask, 0.1)

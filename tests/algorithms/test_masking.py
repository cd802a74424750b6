import statistics

import pytest
import torch

from rayrlhf.algorithms.masking import check_mask, count, masked_mean, masked_sum, masked_whiten, zero_outside

NAN = float("nan")
X = torch.tensor([[1.0, 2.0, NAN], [NAN, 6.0, NAN]])
MASK = torch.tensor([[True, True, False], [False, True, False]])


def test_mean_is_over_all_true_elements_and_not_over_row_means():
    assert masked_mean(X, MASK).item() == 3.0  # (1 + 2 + 6) / 3; the mean of the row means would be 3.75
    assert masked_sum(X, MASK).item() == 9.0


def test_whiten_by_hand():
    # mean 3, squared deviations 4 + 1 + 9 = 14, unbiased variance 7, sqrt 2.6457513
    expected = torch.tensor([[-0.7559289, -0.3779645, 0.0], [0.0, 1.1338934, 0.0]])
    torch.testing.assert_close(masked_whiten(X, MASK), expected, atol=1e-6, rtol=0)


def test_whiten_against_the_statistics_module(ragged_mask, normal):
    for seed in range(5):
        mask, x = ragged_mask(6, 9, seed), normal(seed, 6, 9) * 3 + 5
        inside = [x[i, j].item() for i in range(6) for j in range(9) if mask[i, j]]
        mean, std = statistics.fmean(inside), statistics.stdev(inside)
        result = masked_whiten(x, mask)
        for i in range(6):
            for j in range(9):
                expected = (x[i, j].item() - mean) / std if mask[i, j] else 0.0
                assert result[i, j].item() == pytest.approx(expected, abs=1e-7)


def test_whiten_of_equal_values_is_zero():
    assert masked_whiten(torch.full((2, 3), 0.5), torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0


def test_zero_outside():
    assert torch.equal(zero_outside(X, MASK), torch.tensor([[1.0, 2.0, 0.0], [0.0, 6.0, 0.0]]))


@pytest.mark.parametrize("function", [masked_mean, masked_sum, masked_whiten])
def test_a_row_without_true_raises_and_is_named(function):
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    with pytest.raises(ValueError, match=r"1 of 3 rows of the mask hold no True \(first: \[1\]\)"):
        function(torch.ones(3, 2), mask)


def test_shapes_and_dtype_are_checked():
    with pytest.raises(ValueError, match=r"values has shape \[2, 2\], but the mask has \[2, 3\]"):
        check_mask(MASK, values=torch.ones(2, 2))
    with pytest.raises(TypeError, match="must be bool, got torch.int64"):
        masked_mean(X, MASK.long())


def test_whitening_one_element_raises():
    with pytest.raises(ValueError, match="at least 2 True elements, got 1"):
        masked_whiten(torch.ones(1, 2), torch.tensor([[True, False]]))


def test_no_rows_have_a_sum_but_no_mean():
    empty, mask = torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)
    assert masked_sum(empty, mask).item() == 0.0
    with pytest.raises(ValueError, match="count to divide by is 0"):
        masked_mean(empty, mask)


def test_count_prefers_the_given_one():
    assert count(MASK) == 3
    assert count(MASK, 12) == 12
    with pytest.raises(ValueError, match="count to divide by is 0"):
        count(MASK, 0)

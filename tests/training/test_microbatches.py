"""Splitting a minibatch over ranks and forward passes."""

import pytest
import torch

from rayrlhf.errors import ConfigError
from rayrlhf.training.microbatches import microbatches, pad


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [30, 64, 1000])
def test_every_row_once_within_the_budget_and_alike_in_number(world_size: int, budget: int) -> None:
    lengths = torch.randint(1, 31, (37,), generator=torch.Generator().manual_seed(0))
    ranks = [microbatches(lengths, budget, world_size, rank) for rank in range(world_size)]
    assert len({len(passes) for passes in ranks}) == 1
    rows = [int(row) for passes in ranks for numbers in passes for row in numbers]
    assert sorted(rows) == list(range(37))
    for passes in ranks:
        assert all(len(numbers) * int(lengths[numbers].max()) <= budget for numbers in passes if len(numbers))


def test_rows_of_like_length_go_together() -> None:
    # 30 + 3 x 10 padded tokens; in the order given it would be 2 x 30 + 2 x 10
    passes = microbatches([10, 30, 10, 10], 30, 1, 0)
    assert [sorted(numbers.tolist()) for numbers in passes] == [[1], [0, 2, 3]]


def test_passes_are_of_like_cost() -> None:
    # 6 rows fit 4 + 2 at budget 40; two ranks get 3 and 3 instead
    ranks = [microbatches([10] * 6, 40, 2, rank) for rank in range(2)]
    assert [[len(numbers) for numbers in passes] for passes in ranks] == [[3], [3]]


@pytest.mark.parametrize("world_size", [1, 3])
def test_packed_rows_are_counted_without_padding(world_size: int) -> None:
    lengths = torch.randint(1, 31, (37,), generator=torch.Generator().manual_seed(0))
    ranks = [microbatches(lengths, 64, world_size, rank, packed=True) for rank in range(world_size)]
    rows = [int(row) for passes in ranks for numbers in passes for row in numbers]
    assert sorted(rows) == list(range(37)) and len({len(passes) for passes in ranks}) == 1
    assert all(int(lengths[numbers].sum()) <= 64 for passes in ranks for numbers in passes)
    # 30 + 10 are 40 tokens, 60 with padding
    assert [numbers.tolist() for numbers in microbatches([30, 10], 40, 1, 0, packed=True)] == [[0, 1]]
    assert len(microbatches([30, 10], 40, 1, 0)) == 2


def test_a_rank_without_rows_fills_up_with_empty_passes() -> None:
    assert [len(numbers) for numbers in microbatches([5], 10, 3, 0)] == [1]
    assert [len(numbers) for numbers in microbatches([5], 10, 3, 2)] == [0]


def test_a_row_over_the_budget_is_named() -> None:
    with pytest.raises(ConfigError, match=r"31 tokens does not fit microbatch_tokens=30"):
        microbatches([3, 31], 30, 1, 0)


def test_pad() -> None:
    tokens, lengths = pad([[7, 8, 9], [1]])
    assert tokens.tolist() == [[7, 8, 9], [1, 0, 0]] and lengths.tolist() == [3, 1]
    tokens, lengths = pad([])
    assert tokens.shape == (0, 1) and lengths.shape == (0,)

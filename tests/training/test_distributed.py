"""A batch that rank 0 hands on to the others, over real process groups."""

import pytest
import torch

from rayrlhf.batches import PolicyBatch, Rollouts, Scores
from rayrlhf.training.distributed import broadcast_batch
from tests.training.experience import policy_batch, random_rollouts

ROLLOUTS = random_rollouts(7)
LOGPROBS = torch.randn(ROLLOUTS.tokens.shape, generator=torch.Generator().manual_seed(1))
SCORES = Scores(torch.arange(7.0), torch.arange(14.0).view(7, 2), ("model", "length"))
BATCHES = (
    ROLLOUTS,
    policy_batch(ROLLOUTS, LOGPROBS),
    SCORES,
    ROLLOUTS.rows([]),
)


def same(one, other) -> bool:
    return type(one) is type(other) and all(torch.equal(getattr(one, n), getattr(other, n)) for n in one.SHAPES)


def of_all(rank: int) -> list[bool]:
    return [same(broadcast_batch(batch.rows(slice(0)) if rank else batch), batch) for batch in BATCHES]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_has_the_batch_of_rank_0(world_size, tmp_path):
    from tests.training.ranks import run_ranks

    assert run_ranks(of_all, world_size, tmp_path) == [[True] * len(BATCHES)] * world_size


def test_rows_are_dealt_in_order():
    parts = ROLLOUTS.dealt(3)
    assert [len(part) for part in parts] == [3, 2, 2] and all(isinstance(part, Rollouts) for part in parts)
    assert same(Rollouts.concat(parts), ROLLOUTS)
    assert [len(part) for part in ROLLOUTS.rows([5]).dealt(3)] == [1, 0, 0]
    assert SCORES.dealt(2)[1].names == SCORES.names
    assert isinstance(policy_batch(ROLLOUTS, LOGPROBS).dealt(2)[0], PolicyBatch)

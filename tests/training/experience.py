"""Random rollouts and batches of uneven lengths for the learners' tests."""

from __future__ import annotations

import socket

import torch
from torch import Tensor

from rayrlhf.batches import CriticBatch, PolicyBatch, Rollouts, TextBatch, Values

TEXTS = TextBatch(
    tokens=torch.tensor([[1, 40, 41, 42, 2], [1, 50, 2, 0, 0], [1, 60, 61, 2, 0]]),
    lengths=torch.tensor([5, 3, 4]),
    loss_mask=torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool),
)


def random_rollouts(rows: int = 7, seed: int = 0) -> Rollouts:
    """Prompts of 2 to 5 tokens, responses of 1 to 12; padding holds the end token's number."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(2, 6, (rows,), generator=generator)
    lengths = prompts + torch.randint(1, 13, (rows,), generator=generator)
    width = int(lengths.max()) + 2
    tokens = torch.randint(3, 256, (rows, width), generator=generator)
    column = torch.arange(width)
    tokens[column >= lengths[:, None]] = 2
    mask = (column >= prompts[:, None]) & (column < lengths[:, None])
    sampled_logprobs, finished = torch.zeros(rows, width), torch.ones(rows, dtype=torch.bool)
    version = torch.zeros_like(lengths)
    return Rollouts(tokens, lengths, mask, sampled_logprobs, finished, torch.arange(rows), version)


def policy_batch(rollouts: Rollouts, logprobs: Tensor, seed: int = 1) -> PolicyBatch:
    """A batch with random advantages; `logprobs` also stand for the reference's and the sampler's."""
    generator = torch.Generator().manual_seed(seed)
    mask = rollouts.response_mask
    advantages = torch.where(mask, torch.randn(mask.shape, generator=generator), 0.0)
    return PolicyBatch(rollouts.tokens, rollouts.lengths, mask, logprobs, logprobs, logprobs, advantages)


def critic_batch(rollouts: Rollouts, values: Values, seed: int = 2) -> CriticBatch:
    """A batch with returns around 1."""
    generator = torch.Generator().manual_seed(seed)
    mask = rollouts.response_mask
    returns = torch.where(mask, 1 + torch.randn(mask.shape, generator=generator), 0.0)
    return CriticBatch(rollouts.tokens, rollouts.lengths, mask, values.values, returns)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

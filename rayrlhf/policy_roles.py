"""The policy role with something around its update; the coordinator does not see the difference."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from rayrlhf.batches import PolicyBatch, Rollouts, TextBatch
from rayrlhf.roles import Metrics


class _Around:
    def __init__(self, policy: Any) -> None:
        self.policy = policy

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        return await self.policy.logprobs(rollouts)

    async def save(self, directory: str) -> None:
        await self.policy.save(directory)

    async def load(self, directory: str, lr_scale: float = 1.0) -> None:
        await self.policy.load(directory, lr_scale)


class AdapterOff:
    """`roles.Reference` by the policy's own actors, with its adapter off: no second copy of the model."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        return await self.policy.reference_logprobs(rollouts)


class CriticWarmup(_Around):
    """Does not learn in the first `steps` RL steps: the critic, whose head is new or was a reward
    model's, learns alone to predict what the unchanged policy earns."""

    def __init__(self, policy: Any, steps: int) -> None:
        super().__init__(policy)
        self.steps = steps

    async def update(self, batch: PolicyBatch, step: int, kl_coefficient: float, *texts: TextBatch) -> Metrics:
        return await self.policy.update(batch, step, kl_coefficient, *texts) if step > self.steps else {}


class PretrainingMix(_Around):
    """Learns from a batch of `texts` in each RL step besides (PPO-ptx)."""

    def __init__(self, policy: Any, texts: Iterator[TextBatch]) -> None:
        super().__init__(policy)
        self.texts = texts

    async def update(self, batch: PolicyBatch, step: int, kl_coefficient: float) -> Metrics:
        texts = await asyncio.to_thread(next, self.texts)
        return await self.policy.update(batch, step, kl_coefficient, texts)

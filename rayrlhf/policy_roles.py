"""The policy role with something around its update; the coordinator does not see the difference."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rayrlhf.algorithms.masking import masked_mean
from rayrlhf.batches import PolicyBatch, Rollouts, TextBatch
from rayrlhf.errors import HealthError
from rayrlhf.roles import Metrics
from rayrlhf.stream import Stream, read


class _Around:
    def __init__(self, policy: Any) -> None:
        self.policy = policy

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        return await self.policy.logprobs(rollouts)

    async def save(self, directory: str) -> None:
        await self.policy.save(directory)

    async def load(self, directory: str, lr_scale: float = 1.0) -> None:
        await self.policy.load(directory, lr_scale)

    async def restart(self) -> None:
        await self.policy.restart()


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


class SampledLogprobs(_Around):
    """Has the sampling engine's log-probs for the policy's own, which a pass of its own would make anew.

    Both are of the same weights, and every `every`-th step proves it.  Which steps do follows from the weights' version
    alone, so that a resumed run does the same.
    """

    MAX_GAP = 0.01  # nats a token on average; float32 engines are within 1e-5 of each other, bfloat16 ones are not

    def __init__(self, policy: Any, every: int) -> None:
        super().__init__(policy)
        self.every = every

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        """Raises HealthError, before anything is learnt, where the mean gap is above MAX_GAP."""
        version = int(rollouts.policy_version.max())
        if version % self.every:
            return rollouts.sampled_logprobs
        logprobs: Tensor = await self.policy.logprobs(rollouts)
        gap = float(masked_mean((logprobs - rollouts.sampled_logprobs).abs(), rollouts.response_mask))
        if not gap <= self.MAX_GAP:
            raise HealthError(
                f"step {version + 1}: the sampling engine's log-probs are {gap:.3g} nats a token from the policy's, "
                f"more than {self.MAX_GAP}, and cannot stand for them. Likely cause: unlike precisions. "
                "Set rollout.dtype and policy.engine.precision alike (float32), or policy.recompute_logprobs_every=1"
            )
        return logprobs

    async def update(self, batch: PolicyBatch, step: int, kl_coefficient: float, *texts: TextBatch) -> Metrics:
        return await self.policy.update(batch, step, kl_coefficient, *texts)


class PretrainingMix(_Around):
    """Learns from a batch of `texts` in each RL step besides (PPO-ptx): the one of the same number as the step's batch
    of prompts, also where steps are taken again or learn nothing, and where more prompts have been sampled from."""

    def __init__(self, policy: Any, texts: Stream[TextBatch], rollout_batch: int) -> None:
        """`rollout_batch`: rows of a step."""
        super().__init__(policy)
        self.texts, self.rollout_batch = texts, rollout_batch
        self._number = 0  # of the batch whose log-probs were asked for last

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        self._number = int(rollouts.prompt_index[0]) // self.rollout_batch
        return await super().logprobs(rollouts)

    async def update(self, batch: PolicyBatch, step: int, kl_coefficient: float) -> Metrics:
        self.texts.seek(self._number)
        return await self.policy.update(batch, step, kl_coefficient, await read(self.texts))

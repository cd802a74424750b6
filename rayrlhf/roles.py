"""What the coordinator asks of each role.  Plain async methods: a Ray actor group, an object in
the same process and a fake in a test all fit.  Imports nothing of ours but `batches`.

Metrics in an answer are a flat dict of floats, already reduced over ranks and minibatches.  Policy and critic raise
StateLost where a rank of theirs failed; the others mend themselves, or raise GaveUp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rayrlhf.batches import CriticBatch, Part, PolicyBatch, Prompts, Rollouts, Scores, Values

Metrics = dict[str, float]


@dataclass(frozen=True)
class Early:
    """Asks for the rows of a batch that have ended while others are being sampled."""

    parts: int  # that each engine makes of its rows, those that end first in the first one
    put: Callable[[Rollouts], None]  # takes each part as it is there; every row comes once


class Policy(Protocol):
    """The model being trained, over one or more ranks."""

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        """log_softmax(logits / temperature) of each response token, f32 `[B, T]`."""

    async def update(self, batch: PolicyBatch, step: int, kl_coefficient: float) -> Metrics:
        """All epochs and minibatches of one RL step; `step` seeds the shuffling of rows;
        `kl_coefficient` weighs the KL to the reference in the loss (0: it is in the reward)."""

    async def save(self, directory: str) -> None:
        """Write `model/` and the policy's part of `state/` under `directory`."""

    async def load(self, directory: str, lr_scale: float) -> None:
        """Restore weights, optimizer, schedule and RNG from what `save` wrote; from now on the learning rate is
        `lr_scale` of the schedule's."""

    async def restart(self) -> None:
        """New processes with the weights that training began with, whatever state the former are in."""


class Critic(Protocol):
    """The value model, over one or more ranks."""

    async def values(self, rollouts: Rollouts) -> Values:
        """The value of the state before each response token, and of the state after the last one."""

    async def update(self, batch: CriticBatch, step: int) -> Metrics:
        """All epochs and minibatches of one RL step."""

    async def save(self, directory: str) -> None:
        """Write the critic's part of `state/` under `directory`."""

    async def load(self, directory: str, lr_scale: float) -> None:
        """Restore what `save` wrote; `lr_scale` as the policy's."""

    async def restart(self) -> None:
        """As the policy's."""


class Reference(Protocol):
    """The frozen policy the KL is measured against."""

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        """log_softmax(logits / temperature) of each response token, f32 `[B, T]`."""


class Reward(Protocol):
    """Where a score comes from."""

    async def scores(self, rollouts: Rollouts) -> Scores:
        """One score a sequence."""


class Rollout(Protocol):
    """The engines that sample responses."""

    async def generate(
        self, prompts: Prompts, seed: int, part: Part | None = None, early: Early | None = None
    ) -> Rollouts:
        """One response a row of `prompts`; `seed` and `prompt_index` fix each row's sampling.

        Of each only that part, where one is given: the answer's mask, log-probs and version are of its tokens alone.
        """


class Publisher(Protocol):
    """Carries the policy's weights to the rollout engines."""

    async def publish(self, version: int) -> Metrics:
        """Every engine holds `version` when this returns; raises if a checksum differs."""

    async def export(self, version: int) -> tuple[Any, Metrics]:
        """A copy of the policy's weights as they are now, for `load`; it is there as long as somebody holds it."""

    async def load(self, copy: Any) -> None:
        """Every engine holds the copy's version when this returns, and is given it again where it is begun anew;
        raises if a checksum differs, and StateLost where the copy went with the policy's process."""

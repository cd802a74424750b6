"""The critic: one rank of the value model being trained."""

from __future__ import annotations

import os
from typing import Any

from actors.ranks import EngineRank
from rayrlhf.batches import CriticBatch, Rollouts, Values
from rayrlhf.checkpoint import writing
from rayrlhf.roles import Metrics
from rayrlhf.training.critic_learner import CriticLearner


class CriticRank(EngineRank):
    """Every method is called on all ranks at once with the same arguments, but that rank 0 alone has a batch's rows."""

    def start(
        self, rank: int, world_size: int, address: str, port: int, timeout_s: float, threads: int, **learner: Any
    ) -> None:
        """Meet the other ranks and load the model; `learner`: what CriticLearner takes."""
        self.join(rank, world_size, address, port, timeout_s, threads)
        self.learner = CriticLearner(**learner)

    def values(self, rollouts: Rollouts) -> Values | None:
        return self.answer(self.learner.values(self.whole(rollouts)))

    def update(self, batch: CriticBatch, step: int) -> Metrics | None:
        return self.answer(self.learner.update(self.whole(batch), step))

    def save(self, directory: str) -> None:
        """The model and every rank's engine state to `directory/state/critic`."""
        state = os.path.join(directory, "state")
        with writing(directory):
            self.learner.save(os.path.join(state, "critic", "model"), state)

    def load(self, directory: str, lr_scale: float) -> None:
        self.learner.load(os.path.join(directory, "state"), lr_scale)

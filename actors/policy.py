"""The policy: one rank of the model being trained."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from actors.ranks import EngineRank
from actors.weight_sync import Bucket, put
from rayrlhf.batches import PolicyBatch, Rollouts, TextBatch
from rayrlhf.checkpoint import writing
from rayrlhf.roles import Metrics
from rayrlhf.training.policy_learner import PolicyLearner


class PolicyRank(EngineRank):
    """Every method is called on all ranks at once with the same arguments, but that rank 0 alone has a batch's rows."""

    def start(
        self, rank: int, world_size: int, address: str, port: int, timeout_s: float, threads: int, **learner: Any
    ) -> None:
        """Meet the other ranks and load the model; `learner`: what PolicyLearner takes."""
        self.join(rank, world_size, address, port, timeout_s, threads)
        self.learner = PolicyLearner(**learner)

    def logprobs(self, rollouts: Rollouts) -> Tensor | None:
        return self.answer(self.learner.logprobs(self.whole(rollouts)))

    def reference_logprobs(self, rollouts: Rollouts) -> Tensor | None:
        return self.answer(self.learner.reference_logprobs(self.whole(rollouts)))

    def update(
        self, batch: PolicyBatch, step: int, kl_coefficient: float, texts: TextBatch | None = None
    ) -> Metrics | None:
        texts = texts if texts is None else self.whole(texts)
        return self.answer(self.learner.update(self.whole(batch), step, kl_coefficient, texts))

    def save(self, directory: str) -> None:
        """The model to `directory/model` (an adapter besides to `directory/adapter`), every rank's engine state
        to `directory/state/policy`."""
        with writing(directory):
            self.learner.save(os.path.join(directory, "model"), os.path.join(directory, "state"))

    def load(self, directory: str, lr_scale: float) -> None:
        self.learner.load(os.path.join(directory, "state"), lr_scale)

    def export_weights(self, bucket_bytes: int) -> list[Bucket] | None:
        """Rank 0: for each bucket of full weights by Hugging Face name, its place in the object store
        and each tensor's digest.  The other ranks help to gather and return None."""
        buckets = self.learner.engine.weight_buckets(bucket_bytes)
        places = [put(bucket) for bucket in buckets if bucket is not None]
        self.learner.engine.leave_gpu()
        return self.answer(places)

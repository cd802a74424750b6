"""The reward: a replica of the source of scores."""

from __future__ import annotations

import torch

from rayrlhf.batches import Rollouts, Scores
from rayrlhf.reward_sources.model import RewardModel


class RewardReplica:
    """Stateless but for its frozen model."""

    def start(self, folder: str, forward_tokens: int, threads: int) -> None:
        """`folder`: a reward model's checkpoint.  `forward_tokens`: padded tokens of one pass.
        Raises ModelError."""
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.source = RewardModel(folder, forward_tokens, device)

    def scores(self, rollouts: Rollouts) -> Scores:
        return self.source.scores(rollouts.tokens, rollouts.lengths)

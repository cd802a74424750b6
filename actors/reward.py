"""The reward: a replica of the source of scores."""

from __future__ import annotations

import math
from typing import Any

import torch

from rayrlhf.batches import Rollouts, Scores
from rayrlhf.reward_sources.config import RewardFailuresConfig
from rayrlhf.reward_sources.function import FunctionReward
from rayrlhf.reward_sources.model import RewardModel
from rayrlhf.role_logs import LoggedRole


class RewardReplica(LoggedRole):
    """Stateless but for its frozen model."""

    source: RewardModel | FunctionReward

    def start(
        self,
        folder: str,
        forward_tokens: int,
        threads: int,
        function: str | None = None,
        failures: RewardFailuresConfig | None = None,
        call_deadline_s: float = math.inf,
    ) -> None:
        """`folder`: a reward model's checkpoint; with a `function`, `module:function`, whose tokenizer
        decodes.  `forward_tokens`: padded tokens of one pass.  `failures`, `call_deadline_s`: as FunctionReward's.
        Raises ModelError, ConfigError."""
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if function is None:
            self.source = RewardModel(folder, forward_tokens, device)
        else:
            self.source = FunctionReward(function, folder, failures, call_deadline_s, threads)

    def scores(self, rollouts: Rollouts, columns: dict[str, list[Any]] | None = None) -> Scores:
        """`columns`: of the prompts' rows, for a function."""
        if isinstance(self.source, FunctionReward):
            return self.source.scores(rollouts, columns)
        return self.source.scores(rollouts)

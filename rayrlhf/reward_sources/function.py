"""The score of a Python function, for what can be checked by a program."""

from __future__ import annotations

from typing import Any

import torch

from rayrlhf.batches import Rollouts, Scores
from rayrlhf.models.causal_lm import load_tokenizer
from rayrlhf.rollout_texts import texts_of
from rayrlhf.score_function import columns_of, load_function


class FunctionReward:
    """`module:function(prompts, responses, **columns) -> one float a response`, on decoded texts."""

    def __init__(self, name: str, folder: str) -> None:
        """`folder`: where the policy's tokenizer is.  Raises ConfigError, ModelError."""
        self.function, self.tokenizer = load_function(name, "reward_function"), load_tokenizer(folder)
        self.needed = columns_of(name)[1]

    def scores(self, rollouts: Rollouts, columns: dict[str, list[Any]] | None = None) -> Scores:
        """One score a row; `columns` of the prompts' rows go to the function by name, but for those that no row has
        where the function has a default.  Raises ConfigError where it gives no score, or one that is not finite."""
        given = {
            name: values
            for name, values in (columns or {}).items()
            if name in self.needed or any(value is not None for value in values)
        }
        total = torch.tensor(self.function(*texts_of(rollouts, self.tokenizer), **given), dtype=torch.float32)
        return Scores(total, total[:, None], ("function",))

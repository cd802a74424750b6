"""One rank of the critic as PPO trains it."""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.algorithms.alignment import shift_right
from rayrlhf.algorithms.masking import masked_mean
from rayrlhf.algorithms.ppo_loss import value_loss
from rayrlhf.batches import CriticBatch, Rollouts, Values
from rayrlhf.models.adapters import with_adapter
from rayrlhf.models.causal_lm import load_tokenizer
from rayrlhf.models.scalar import load_scalar, position_scores
from rayrlhf.roles import Metrics
from rayrlhf.training.distributed import seed_all
from rayrlhf.training.engine import Engine
from rayrlhf.training.learner import Counts, Learner
from rayrlhf.training.ppo_config import CriticUpdateConfig

_NAMES = {"loss/value": "loss/value_avg", "critic/clipfrac": "val/clipfrac_avg"}


class CriticLearner(Learner):
    """Values and updates of a language model with a scalar head, usually a copy of the reward model."""

    role = "critic"

    def __init__(
        self, folder: str, config: CriticUpdateConfig, total_steps: int, seed: int, offload: bool = False
    ) -> None:
        """`folder`: a sequence-classification checkpoint with one output, or a causal LM (fresh head,
        drawn by `seed`).  `total_steps`: optimizer steps of the run.  `offload`: as Engine
        has it.  Raises ModelError."""
        seed_all(seed)
        engine = Engine(with_adapter(load_scalar(folder), config.peft), config.engine, total_steps, offload)
        super().__init__(engine, load_tokenizer(folder), config, seed)
        self.config = config

    def values(self, rollouts: Rollouts) -> Values:
        """The head after token t-1 is the value of the state before token t; after the last token, the
        bootstrap.  The whole batch on every rank."""
        scores = self.forward(rollouts, lambda part: position_scores(self.engine.module, part.tokens, part.lengths))
        bootstrap = scores.gather(1, rollouts.lengths[:, None] - 1)[:, 0]
        return Values(torch.where(rollouts.response_mask, shift_right(scores), 0.0), bootstrap)

    def update(self, batch: CriticBatch, step: int) -> Metrics:
        """All epochs and minibatches of one RL step; every rank is given the whole `batch`.

        `critic/explained_variance` is of the values that the batch's advantages were made with.
        """
        steps = self.learn(batch, step, self._piece_loss)
        return {
            **self.averages(steps, _NAMES),
            **self.speeds(steps),
            "critic/explained_variance": explained_variance(batch),
            "critic/value_mean": float(masked_mean(batch.values, batch.response_mask)),
            "critic/return_mean": float(masked_mean(batch.returns, batch.response_mask)),
        }

    def _piece_loss(self, part: CriticBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        values = shift_right(position_scores(self.engine.module, part.tokens, part.lengths))
        return value_loss(values, part.values, part.returns, part.response_mask, self.config.clip, counts.tokens)


def explained_variance(batch: CriticBatch) -> float:
    """1 - Var(returns - values) / Var(returns) over response tokens: 1 is perfect, 0 no better than a
    constant; 0 by convention where the returns do not vary."""
    returns, values = batch.returns[batch.response_mask], batch.values[batch.response_mask]
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)

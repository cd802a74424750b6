"""The score of a trained reward model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayrlhf.batches import Rollouts, Scores
from rayrlhf.models.forward import leaves_padding_out
from rayrlhf.models.scalar import load_scalar, sequence_scores
from rayrlhf.training.microbatches import microbatches


class RewardModel:
    """A frozen sequence-classification checkpoint with one output."""

    def __init__(self, folder: str, microbatch_tokens: int, device: str = "cpu") -> None:
        """`microbatch_tokens`: padded tokens of one forward pass.  Raises ModelError."""
        model: Any = load_scalar(folder)
        self.model = model.to(device).eval()
        self.microbatch_tokens = microbatch_tokens

    def scores(self, rollouts: Rollouts) -> Scores:
        """The head's output on each row's last token."""
        total = self.of_tokens(rollouts.tokens, rollouts.lengths)
        return Scores(total, total[:, None], ("reward_model",))

    @torch.no_grad()
    def of_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The scores, f32[B], of `tokens` i64[B, T], padded after `lengths` i64[B]."""
        device = next(self.model.parameters()).device
        total = torch.zeros(len(tokens), dtype=torch.float32)
        is_packed = leaves_padding_out(self.model)
        for rows in microbatches(lengths, self.microbatch_tokens, 1, 0, is_packed):
            longest = int(lengths[rows].max())
            part = sequence_scores(self.model, tokens[rows, :longest].to(device), lengths[rows].to(device))
            total[rows] = part.float().cpu()
        return total

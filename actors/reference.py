"""The reference: a replica of the frozen policy that the KL is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayrlhf.batches import Rollouts
from rayrlhf.models.causal_lm import load_causal_lm
from rayrlhf.models.forward import leaves_padding_out
from rayrlhf.models.precision import autocast
from rayrlhf.role_logs import LoggedRole
from rayrlhf.training.passes import response_logprobs, token_pass


class ReferenceReplica(LoggedRole):
    """Stateless but for its frozen model."""

    def start(
        self, folder: str, temperature: float, forward_tokens: int, threads: int, precision: str = "float32"
    ) -> None:
        """`folder`: a Hugging Face causal LM.  `temperature`: that of the sampling.  `forward_tokens`:
        padded tokens of one pass.  `precision`: as `EngineConfig` has it.  Raises ModelError."""
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = load_causal_lm(folder)
        self.model = model.to(self.device).eval()
        self.temperature, self.forward_tokens, self.precision = temperature, forward_tokens, precision

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        with autocast(self.device, self.precision):
            return token_pass(
                rollouts,
                lambda part: response_logprobs(self.model, part, self.temperature),
                self.forward_tokens,
                self.device,
                is_packed=leaves_padding_out(self.model),
            )

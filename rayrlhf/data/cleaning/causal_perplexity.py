"""Perplexity a token under a causal language model; held by an actor of Ray Data."""

from __future__ import annotations

import math
from typing import Any

from rayrlhf.data.cleaning.config import CausalPerplexity
from rayrlhf.data.cleaning.verdict import Dropped, above, below


class Scorer:
    """The model of a step, on a GPU where there is one."""

    def __init__(self, config: CausalPerplexity) -> None:
        import torch

        from rayrlhf.model_folder import model_folder
        from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer

        torch.set_num_threads(1)
        folder = model_folder(config.model)
        self.config, self.tokenizer = config, load_tokenizer(folder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = load_causal_lm(folder)
        self.model = model.to(self.device).eval()

    def __call__(self, texts: list[str]) -> list[str | Dropped]:
        """Each text, or why it is dropped."""
        found: list[str | Dropped] = []
        for text, value in zip(texts, self.perplexities(texts), strict=True):
            verdict = above("high_perplexity", value, self.config.max_perplexity)
            verdict = verdict or below("low_perplexity", value, self.config.min_perplexity)
            found.append(text if verdict is None else verdict)
        return found

    def perplexities(self, texts: list[str]) -> list[float]:
        """exp of the mean negative log-probability of the first `max_tokens` tokens, given the beginning token or,
        without one, the first token; 1 where there is nothing to predict."""
        import torch

        from rayrlhf.models.forward import leaves_padding_out
        from rayrlhf.training.losses import completion_logprobs
        from rayrlhf.training.microbatches import microbatches

        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        rows = [begin + self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        rows = [row[: self.config.max_tokens] or [0] for row in rows]
        sums = torch.zeros(len(rows))
        is_packed = leaves_padding_out(self.model)
        with torch.no_grad():
            for some in microbatches(list(map(len, rows)), self.config.microbatch_tokens, 1, 0, is_packed):
                if len(some):
                    ids = [rows[n] for n in some]
                    sums[some] = completion_logprobs(self.model, ids, [1] * len(ids), self.device).cpu()
        counts = [len(row) - 1 for row in rows]
        return [math.exp(-total / n) if n else 1.0 for total, n in zip(sums.tolist(), counts, strict=True)]

"""The server's reward model: texts in, scores out, those of many requests in one forward pass."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve

from rayrlhf.errors import DataError

_FORWARD_TOKENS = 16384  # padded tokens of one pass, and no less than the context


class RewardServer:
    """A replica with a frozen reward model; the scores are those that its stage is evaluated by."""

    def __init__(self, folder: str, batch: int, threads: int) -> None:
        """`batch`: most texts of one pass."""
        import torch

        from rayrlhf.models.causal_lm import check_folder, load_tokenizer
        from rayrlhf.reward_sources.model import RewardModel

        torch.set_num_threads(threads)
        self.folder, self.tokenizer, self.context = folder, load_tokenizer(folder), check_folder(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = RewardModel(folder, max(_FORWARD_TOKENS, self.context), device)
        self._one.set_max_batch_size(batch)  # type: ignore[attr-defined]  # Serve's decorator adds it

    async def score(self, texts: list[tuple[Any, str]]) -> tuple[list[float], int]:
        """(the score of each pair of a prompt, as text or messages, and its response; number of tokens read).

        Raises DataError for a text longer than the model's context, ConfigError as `encode_prompt`.
        """
        rows = [self._encode(*text, number) for number, text in enumerate(texts)]
        scores = await asyncio.gather(*(self._one(row) for row in rows))
        return list(scores), sum(map(len, rows))

    def _encode(self, prompt: Any, response: str, number: int) -> list[int]:
        from rayrlhf.data.templates import encode_completion, encode_prompt

        row = encode_prompt(self.tokenizer, prompt) + encode_completion(self.tokenizer, response)
        if len(row) > self.context:
            raise DataError(
                f"text {number} has {len(row)} tokens with its prompt and its end, and the reward model reads up to "
                f"{self.context}: shorten it"
            )
        return row

    @serve.batch(batch_wait_timeout_s=0.01)
    async def _one(self, rows: list[list[int]]) -> list[float]:
        """Called with one row; Serve hands over those of all requests that came within 10 ms."""
        return await asyncio.to_thread(self._forward, rows)

    def _forward(self, rows: list[list[int]]) -> list[float]:
        from rayrlhf.training.microbatches import pad

        return [float(score) for score in self.model.of_tokens(*pad(rows))]

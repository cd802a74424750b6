"""The vLLM engine's twin in plain transformers: slower, and easy to follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from actors.config import RolloutConfig, SamplingConfig
from actors.engines.base import (
    Engine,
    StopStrings,
    assemble,
    check_complete,
    check_prompts,
    digesting,
    end_tokens,
    row_seed,
    share_of,
)
from rayrlhf.batches import Part, Prompts, Rollouts
from rayrlhf.errors import RoleError


class TransformersEngine(Engine):
    """See actors.engines.base.Engine."""

    def __init__(self, folder: str, config: RolloutConfig) -> None:
        """Loads a Hugging Face folder, onto the GPU where the process has one."""
        from transformers import AutoModelForCausalLM

        from rayrlhf.models.pretrained import model_of

        self.version = 0
        self._ends, self._stops = torch.tensor(end_tokens(folder)), StopStrings(folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = model_of(AutoModelForCausalLM, folder, dtype=getattr(torch, config.dtype))
        self._model = model.to(self._device).eval()
        self._context = config.max_model_len or model.config.max_position_embeddings

    @torch.no_grad()
    def stream(
        self, prompts: Prompts, sampling: SamplingConfig, seed: int, part: Part | None = None, parts: int = 1
    ) -> Iterator[Rollouts]:
        """See Engine; prompts are padded on the left, so that all rows grow at the same place."""
        part = Part.of_all(len(prompts), sampling.max_new_tokens) if part is None else part
        check_prompts(prompts, part, self._context)
        count, width, longest = len(prompts), int(prompts.lengths.max()), int(part.limit.max())
        tokens = torch.zeros(count, width, dtype=torch.int64)
        mask = torch.zeros(count, width, dtype=torch.int64)
        for row, length in enumerate(prompts.lengths.tolist()):
            tokens[row, width - length :] = prompts.tokens[row, :length]
            mask[row, width - length :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        # [B, longest]: each row's own randomness, whatever rows are sampled beside it
        uniform = torch.stack(
            [
                torch.rand(
                    longest,
                    dtype=torch.float64,
                    generator=torch.Generator().manual_seed(row_seed(seed, index, begun)),
                )
                for index, begun in zip(prompts.prompt_index.tolist(), part.begun.tolist(), strict=True)
            ]
        )
        sampled: list[Tensor] = []
        logprobs: list[Tensor] = []
        stops = self._stops.of(sampling)
        lengths = part.limit.clone()  # of the responses, with what ends them
        ended = torch.zeros(count, dtype=torch.bool)
        given = torch.zeros(count, dtype=torch.bool)
        cache = None
        for step in range(longest):
            output = self._model(
                input_ids=tokens.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float().cpu() / sampling.temperature
            distribution = torch.log_softmax(logits, dim=-1)
            chosen = distribution.argmax(-1) if sampling.is_greedy else draw(distribution, uniform[:, step])
            sampled.append(chosen)
            logprobs.append(distribution.gather(1, chosen[:, None])[:, 0])
            ends = torch.isin(chosen, self._ends)
            if stops:
                ends |= self._at_stop(stops, prompts, torch.stack(sampled, 1), ~ended)
            ends &= step < part.limit
            lengths[ends & ~ended] = step + 1
            ended |= ends
            done = ended | (step + 1 >= part.limit)
            new = done & ~given
            if done.all() or int(new.sum()) >= share_of(count, parts):
                yield self._assembled(prompts, new, sampled, logprobs, lengths, ended)
                given |= new
            if done.all():
                break
            tokens = chosen[:, None]
            mask = torch.cat([mask, torch.ones(count, 1, dtype=torch.int64)], dim=1)
            positions = positions[:, -1:] + 1

    def _assembled(
        self,
        prompts: Prompts,
        new: Tensor,
        sampled: list[Tensor],
        logprobs: list[Tensor],
        lengths: Tensor,
        ended: Tensor,
    ) -> Rollouts:
        """Of the rows in `new`, bool[B].  Some were fed more after their end or limit, until the others were there."""
        rows = new.nonzero()[:, 0]
        counts = lengths[rows].tolist()
        return assemble(
            prompts.rows(rows),
            [row[:n] for row, n in zip(torch.stack(sampled, 1)[rows].tolist(), counts, strict=True)],
            [row[:n] for row, n in zip(torch.stack(logprobs, 1)[rows].tolist(), counts, strict=True)],
            ended[rows].tolist(),
            self.version,
        )

    def _at_stop(self, stops: list[str], prompts: Prompts, sampled: Tensor, rows: Tensor) -> Tensor:
        """bool[B]: which of `rows` (bool[B]) have a text of `stops` in what was sampled, `[B, steps]`, so far."""
        found = torch.zeros(len(prompts), dtype=torch.bool)
        for row in rows.nonzero()[:, 0].tolist():
            prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
            found[row] = self._stops.reached(stops, prompt, sampled[row].tolist())
        return found

    @torch.no_grad()
    def load_weights(self, version: int, buckets: Iterable[dict[str, Tensor]]) -> dict[str, str]:
        """Copies the weights into the model's parameters; tied ones are one parameter."""
        parameters = dict(self._model.named_parameters())
        digests: dict[str, str] = {}
        for name, tensor in digesting(buckets, digests):
            if name not in parameters or parameters[name].shape != tensor.shape:
                shape = list(parameters[name].shape) if name in parameters else "none of that name"
                raise RoleError(f"published tensor {name} {list(tensor.shape)} does not fit the engine's: {shape}")
            parameters[name].copy_(tensor)
        check_complete(set(parameters), set(digests))
        self.version = version
        return digests

    def sleep(self) -> None:
        self._model.to("cpu")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self._model.to(self._device)


def draw(distribution: Tensor, uniform: Tensor) -> Tensor:
    """Tokens i64[B] where the cumulative probabilities pass `uniform` f64[B] in [0, 1).

    `distribution` holds log-probabilities [B, V].
    """
    cumulative = distribution.double().exp().cumsum(-1)
    # the sum is 1 only up to rounding; right=True never takes a token of probability 0
    threshold = uniform[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return chosen.clamp(max=distribution.shape[1] - 1)

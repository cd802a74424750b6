"""What every sampling engine does, and what they share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from actors.config import RolloutConfig, SamplingConfig, check_lengths
from rayrlhf.batches import Part, Prompts, Rollouts
from rayrlhf.errors import DataError, ModelError, RoleError
from rayrlhf.models.digest import tensor_digest

_CONTEXT = 8  # tokens before a response that settle how its first ones read


class Engine(Protocol):
    """Samples responses with weights that can be replaced while it runs."""

    version: int  # of the weights it holds; those of its model folder are version 0

    def generate(self, prompts: Prompts, sampling: SamplingConfig, seed: int, part: Part | None = None) -> Rollouts:
        """One response a row, or that part of it; each row's sampling is fixed by `seed`, its prompt_index and what
        of its response is there already."""
        (whole,) = self.stream(prompts, sampling, seed, part)
        return whole

    def stream(
        self, prompts: Prompts, sampling: SamplingConfig, seed: int, part: Part | None = None, parts: int = 1
    ) -> Iterator[Rollouts]:
        """`generate`'s rows in up to `parts` batches: as soon as its share of the rows has ended, each yields all that
        have by then, in row order.  Which these are depends on the rows alone, and not on time."""

    def load_weights(self, version: int, buckets: Iterable[dict[str, Tensor]]) -> dict[str, str]:
        """Replaces all weights (Hugging Face names -> whole tensors, tied ones once).

        Returns the digest of each tensor as it was loaded.  Raises RoleError when one is missing
        or unknown.
        """

    def sleep(self) -> None:
        """Leave the GPU to others, the weights kept on the host."""

    def wake(self) -> None:
        """Be ready again, after `sleep`."""


def build(folder: str, config: RolloutConfig, sleeps: bool = False) -> Engine:
    """The engine of `config` over a Hugging Face model folder, warmed up; `sleeps`: it will be asked to."""
    if config.engine == "vllm":
        from actors.engines.vllm import VLLMEngine

        return VLLMEngine(folder, config, sleeps)
    from actors.engines.transformers import TransformersEngine

    return TransformersEngine(folder, config)


def row_seed(seed: int, prompt_index: int, begun: int = 0) -> int:
    """63 bits that depend on these numbers and on nothing else, such as the replica that samples.

    `begun`: tokens of the response that were sampled before.
    """
    later = f":{begun}" if begun else ""
    digest = hashlib.blake2b(f"{seed}:{prompt_index}{later}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def end_tokens(folder: str) -> list[int]:
    """Tokens that end a response: the tokenizer's end token, the one that its chat template puts after an answer
    (such as <|im_end|>) and those of generation_config.json.

    Raises ModelError when there are none.
    """
    from transformers import GenerationConfig

    from rayrlhf.data.conversation import end_of_turn_id
    from rayrlhf.models.pretrained import tokenizer_of

    tokenizer = tokenizer_of(folder)
    ends = {tokenizer.eos_token_id, end_of_turn_id(tokenizer)}
    try:
        listed = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # the file is optional
        listed = None
    ends.update(listed if isinstance(listed, list) else [listed])
    ends.discard(None)
    if not ends:
        raise ModelError(f"the tokenizer in {folder} has no end token; set its eos_token")
    return sorted(ends)


class StopStrings:
    """Texts that end a response: those of a model's generation_config.json and those of the sampling."""

    def __init__(self, folder: str) -> None:
        from rayrlhf.models.causal_lm import stop_strings
        from rayrlhf.models.pretrained import tokenizer_of

        self._own, self._tokenizer = stop_strings(folder), tokenizer_of(folder)

    def of(self, sampling: SamplingConfig) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([*self._own, *sampling.stop_strings]))

    def reached(self, texts: list[str], prompt: list[int], response: list[int]) -> bool:
        """Whether `response`, as it reads after `prompt`, has one of `texts` in it."""
        # after some of the prompt: a tokenizer may drop the space before the first token of all
        before = prompt[-_CONTEXT:]
        text = self._tokenizer.decode(before + response)[len(self._tokenizer.decode(before)) :]
        return any(stop in text for stop in texts)


def share_of(rows: int, parts: int) -> int:
    """Rows that must have ended for `Engine.stream` to yield them."""
    return -(-rows // parts)


def check_prompts(prompts: Prompts, part: Part, context: int) -> None:
    """Raises DataError for a prompt without tokens, ConfigError for one that leaves too little room."""
    if int(prompts.lengths.min()) < 1:
        row = int(prompts.lengths.argmin())
        raise DataError(f"prompt {int(prompts.prompt_index[row])} has no tokens; it needs at least one (bos)")
    longest = int((prompts.lengths + part.limit).argmax())
    check_lengths(int(prompts.lengths[longest]), int(part.limit[longest]), context)


def assemble(
    prompts: Prompts,
    responses: list[list[int]],
    logprobs: list[list[float]],
    finished: list[bool],
    version: int,
) -> Rollouts:
    """Prompts and what was sampled after them, as one right-padded batch."""
    count = len(prompts)
    prompt_lengths = prompts.lengths.tolist()
    lengths = [start + len(response) for start, response in zip(prompt_lengths, responses, strict=True)]
    tokens = torch.zeros(count, max(lengths), dtype=torch.int64)
    mask = torch.zeros(count, max(lengths), dtype=torch.bool)
    sampled = torch.zeros(count, max(lengths))
    for row, (start, end) in enumerate(zip(prompt_lengths, lengths, strict=True)):
        tokens[row, :start] = prompts.tokens[row, :start]
        tokens[row, start:end] = torch.tensor(responses[row])
        mask[row, start:end] = True
        sampled[row, start:end] = torch.tensor(logprobs[row])
    return Rollouts(
        tokens=tokens,
        lengths=torch.tensor(lengths),
        response_mask=mask,
        sampled_logprobs=sampled,
        finished=torch.tensor(finished),
        prompt_index=prompts.prompt_index,
        policy_version=torch.full((count,), version),
    )


def digesting(buckets: Iterable[dict[str, Tensor]], digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The buckets' tensors one by one, each one's digest noted in `digests` as it passes."""
    for bucket in buckets:
        for name, tensor in bucket.items():
            digests[name] = tensor_digest(tensor)
            yield name, tensor


def check_complete(expected: set[str], loaded: set[str]) -> None:
    """Raises RoleError unless every parameter was loaded: the rest would keep their old values."""
    missing = sorted(expected - loaded)
    if missing:
        raise RoleError(
            f"{len(missing)} of {len(expected)} parameters of the engine were not in the published weights, "
            f"first {missing[0]}; the policy's architecture differs from the engine's model folder"
        )

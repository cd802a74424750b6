"""A reward model with another tokenizer or chat template than the policy: what it is given is made anew.

    policy's tokens --> the prompt as its row had it, the response as text --> reward model's template and tokens

The prompt is not decoded: role markers would come back as plain text, and messages not at all.  What a response's
text does not show is lost: special tokens within it, and how it was cut into tokens.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import torch

from rayrlhf.batches import Rollouts, Scores
from rayrlhf.data.prompt_stream import Originals
from rayrlhf.data.templates import encode_completion, encode_prompt
from rayrlhf.roles import Reward
from rayrlhf.training.microbatches import pad

logger = logging.getLogger(__name__)


class Retokeniser:
    """From rollouts in the policy's tokens to rollouts in a reward model's."""

    def __init__(self, policy: Any, reward: Any, originals: Originals, max_tokens: int) -> None:
        """`policy`, `reward`: tokenizers; `max_tokens`: what the reward model can read."""
        self.policy, self.reward, self.originals, self.max_tokens = policy, reward, originals, max_tokens

    def __call__(self, rollouts: Rollouts) -> Rollouts:
        """The same rows for scoring; their `sampled_logprobs` are 0, as nothing sampled these tokens.

        An end token follows only a response that had ended.  Rows over `max_tokens` lose their beginning, not the end
        that the score is read from, and are counted in a warning.
        """
        prompts, responses = [], []
        columns = rollouts.tokens, rollouts.lengths, rollouts.response_mask, rollouts.finished
        for tokens, length, mask, finished in zip(*columns, strict=True):
            start = int(length) - int(mask.sum())
            before, after = tokens[:start].tolist(), tokens[start : int(length)].tolist()
            prompts.append(encode_prompt(self.reward, self.originals.find(before)))
            response = encode_completion(self.reward, self._text(before, after[:-1] if finished else after))
            responses.append(response if finished else response[:-1])
        rows = [(a + b)[-self.max_tokens :] for a, b in zip(prompts, responses, strict=True)]
        self._warn([len(a) + len(b) for a, b in zip(prompts, responses, strict=True)])
        tokens, lengths = pad(rows)
        starts = lengths - torch.tensor([min(len(b), self.max_tokens) for b in responses])
        column = torch.arange(tokens.shape[1])
        mask = (column >= starts[:, None]) & (column < lengths[:, None])
        zeros = torch.zeros(tokens.shape)
        return replace(rollouts, tokens=tokens, lengths=lengths, response_mask=mask, sampled_logprobs=zeros)

    def _text(self, before: list[int], after: list[int]) -> str:
        """The response's text with a space at its beginning where it has one: some tokenizers leave it out
        where a text begins."""
        prompt, whole, alone = (
            self.policy.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in (before, before + after, after)
        )
        return str(whole[len(prompt) :] if whole.startswith(prompt) else alone)

    def _warn(self, lengths: list[int]) -> None:
        too_long = [length for length in lengths if length > self.max_tokens]
        if too_long:
            logger.warning(
                "%d of %d texts lost their beginning: with up to %d tokens of the reward model's own they are longer "
                "than the %d that it can read (its context, or the forward_tokens of a pass). Take shorter prompts or "
                "a lower sampling.max_new_tokens",
                len(too_long), len(lengths), max(too_long), self.max_tokens,
            )  # fmt: skip


class Retokenised:
    """`roles.Reward` over one that reads other tokens."""

    def __init__(self, reward: Reward, retokenise: Retokeniser) -> None:
        self.reward, self.retokenise = reward, retokenise

    async def scores(self, rollouts: Rollouts) -> Scores:
        return await self.reward.scores(await asyncio.to_thread(self.retokenise, rollouts))


def reads_tokens(reward: str, policy: str) -> bool:
    """Whether the reward model of a folder has the tokenizer and the chat template of the policy's."""
    from rayrlhf.data.vocabulary import is_same
    from rayrlhf.models.causal_lm import load_tokenizer

    return is_same(load_tokenizer(policy), load_tokenizer(reward))


def judge(role: Reward, reward: str, policy: str, originals: Originals, forward_tokens: int) -> Reward:
    """`role`, which plays the reward model of a folder, for rollouts in the policy's tokens: as it is, or with its
    input made anew.  `forward_tokens`: tokens of one of its passes."""
    from rayrlhf.models.causal_lm import check_folder, load_tokenizer

    if reads_tokens(reward, policy):
        return role
    limit = min(check_folder(reward), forward_tokens)
    return Retokenised(role, Retokeniser(load_tokenizer(policy), load_tokenizer(reward), originals, limit))

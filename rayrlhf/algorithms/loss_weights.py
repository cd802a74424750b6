"""Weights of the tokens in the policy's loss: how it is normalised, and corrected for who sampled.

The loss is a sum over response tokens of weight * term / num_tokens, `num_tokens` being the global
count of the minibatch; weights of 1 give the mean over tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rayrlhf.algorithms.masking import check_mask, zero_outside

Normaliser = Literal["tokens", "sequence_mean", "constant"]


def token_weights(
    response_mask: Tensor, normaliser: Normaliser, num_tokens: int, num_sequences: int, constant: float | None = None
) -> Tensor:
    """What makes a sum over tokens divided by `num_tokens` the chosen mean, f32 `[B, T]`, 0 outside the mask.

    tokens         mean over the minibatch's response tokens: all weights 1
    sequence_mean  mean over sequences of the mean over each one's tokens (GRPO as published,
                   Shao et al. 2024, eq. 3): num_tokens / (num_sequences * length)
    constant       sum over tokens divided by num_sequences * constant (Dr. GRPO, Liu et al. 2025,
                   where it is the longest a response may be): a long answer is not diluted

    num_tokens, num_sequences: global counts of the minibatch, over microbatches and ranks.
    Raises as `check_mask`, and ValueError for `constant` without a constant above 0.
    """
    check_mask(response_mask)
    ones = response_mask.float()
    if normaliser == "tokens":
        return ones
    if normaliser == "sequence_mean":
        lengths = response_mask.sum(-1, keepdim=True).clamp(min=1)
        return ones * num_tokens / (num_sequences * lengths)
    if constant is None or not constant > 0:
        raise ValueError(f"normaliser=constant divides by the constant, which is {constant}; it must be above 0")
    return ones * num_tokens / (num_sequences * constant)


def importance_weights(logprobs: Tensor, sampled_logprobs: Tensor, response_mask: Tensor, cap: float) -> Tensor:
    """min(exp(logprobs - sampled_logprobs), cap), f32 `[B, T]`, detached, 0 outside the mask.

    Corrects the expectation where the tokens were sampled by another distribution than the trainer's
    before its update: another precision or kernel in the sampling engine, or older weights.  The cap
    bounds the variance and costs some bias.

    logprobs: the trainer's, before the update; sampled_logprobs: as the engine returned them.
    Raises as `check_mask`, and ValueError unless cap >= 1 (a lower one would scale matching tokens down).

    Source: Ionides 2008, "Truncated Importance Sampling"; for engines that differ from the trainer
    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
    """
    check_mask(response_mask, logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    if not cap >= 1:
        raise ValueError(f"the cap of the importance weights is {cap}; it must be 1 or above")
    difference = zero_outside(logprobs.detach() - sampled_logprobs, response_mask)
    return zero_outside(torch.exp(difference.clamp(max=20.0)).clamp(max=cap), response_mask)

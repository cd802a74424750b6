"""PPO's clipped losses of the policy and of the critic.

Normaliser.  A loss is a sum over the response tokens divided by `num_tokens`.  Give the count of
the whole minibatch, over all microbatches and ranks: the losses then add up to the minibatch's,
however it was split.  Every number in `stats` is likewise a sum over the local tokens divided by
`num_tokens`, detached, so that the sum over microbatches and ranks is the mean over the minibatch.
A microbatch of no rows gives 0, connected to the graph.

Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; the value clipping is that
of OpenAI's baselines, "The 37 Implementation Details of PPO" (Huang et al. 2022), detail 9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.algorithms.masking import check_mask, count, zero_outside

MAX_LOG_RATIO = 20.0


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_low: float,
    clip_high: float,
    num_tokens: int | Tensor | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """sum over tokens of max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high)) / num_tokens.

    ratio = exp(logprobs - old_logprobs), the difference clamped to +-20 so that it cannot overflow.
    `dual_clip` c > 1 bounds the loss of a token with A < 0 to -c * A, else a large ratio has no bound.
    `weights` `[B, T]` multiply each token's loss (see `loss_weights`); the other stats stay plain means.

    logprobs (with gradient), old_logprobs, advantages (both constants here), response_mask: `[B, T]`.
    num_tokens: the minibatch's global count of response tokens; None counts the local ones.
    Returns (scalar loss, stats), stats being
      loss/policy      the loss
      policy/approxkl  0.5 * (logprobs - old_logprobs)^2 (TRL's definition, k2)
      policy/clipfrac  share of tokens whose clipped term is the larger, so that they give no gradient
      policy/ratio     the ratio
    Raises as `check_mask` and `count`, and ValueError for a negative clip or dual_clip <= 1.

    Source: Schulman et al. 2017, eq. 7; separate epsilons: Yu et al. 2025 (DAPO), "clip-higher";
    dual clip: Ye et al. 2020, "Mastering Complex Control in MOBA Games with Deep RL".
    """
    check_mask(response_mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if not (clip_low >= 0 and clip_high >= 0):
        raise ValueError(f"clip_low is {clip_low}, clip_high {clip_high}; both are distances from 1, 0 or above")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; it bounds the ratio of bad tokens and must be above 1")
    n = count(response_mask, num_tokens)
    old, advantages = (zero_outside(x.detach(), response_mask) for x in (old_logprobs, advantages))
    log_ratio = (zero_outside(logprobs, response_mask) - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(plain, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    if weights is not None:
        check_mask(response_mask, weights=weights)
        losses = losses * zero_outside(weights.detach(), response_mask)
    loss = losses.sum() / n  # outside the mask the advantage is 0, and with it every term but the ratio
    with torch.no_grad():
        stats = {
            "loss/policy": loss.detach(),
            "policy/approxkl": (0.5 * log_ratio**2).sum() / n,
            "policy/clipfrac": (clipped > plain).sum() / n,
            "policy/ratio": zero_outside(ratio, response_mask).sum() / n,
        }
    return loss, stats


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    clip: float,
    num_tokens: int | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """sum over tokens of 0.5 * max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / num_tokens.

    values (with gradient), old_values, returns (both constants here), response_mask: `[B, T]`.
    clip: in units of the value; `float("inf")` gives the plain squared error.  num_tokens as in
    `policy_loss`.  Returns (scalar loss, stats), stats being
      loss/value       the loss
      critic/clipfrac  share of tokens whose clipped term is the larger, so that they give no gradient
    Raises as `check_mask` and `count`, and ValueError unless clip is above 0.
    """
    check_mask(response_mask, values=values, old_values=old_values, returns=returns)
    if not clip > 0:
        raise ValueError(f"clip is {clip}; it must be above 0 (inf switches the clipping off)")
    n = count(response_mask, num_tokens)
    old, returns = (zero_outside(x.detach(), response_mask) for x in (old_values, returns))
    values = zero_outside(values, response_mask)
    plain = (values - returns) ** 2
    clipped = (values.clamp(old - clip, old + clip) - returns) ** 2
    loss = 0.5 * torch.maximum(plain, clipped).sum() / n
    with torch.no_grad():
        stats = {"loss/value": loss.detach(), "critic/clipfrac": (clipped > plain).sum() / n}
    return loss, stats

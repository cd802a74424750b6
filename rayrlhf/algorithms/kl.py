"""Per-token estimates of KL(policy || reference) from tokens the policy sampled.

Source: Schulman 2020, "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.algorithms.masking import check_mask, count, zero_outside


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """An estimate for each token; its expectation under the policy is KL for k1 and k3, near it for k2.

    k1 = logp - ref (unbiased, either sign), k2 = k1^2 / 2 (biased, >= 0),
    k3 = exp(-k1) - 1 + k1 (unbiased, >= 0).

    logprobs, ref_logprobs: `[B, T]`.  Returns `[B, T]`; elementwise, so entries outside the
    response are for `rewards.token_rewards` or `kl_loss` to mask.

    Raises ValueError for another `kind` or shapes that differ.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"logprobs have shape {list(logprobs.shape)}, but ref_logprobs have {list(ref_logprobs.shape)}"
        )
    k1 = logprobs - ref_logprobs
    if kind == "k1":
        return k1
    if kind == "k2":
        return k1**2 / 2
    if kind == "k3":
        return torch.expm1(-k1) + k1  # expm1 keeps the digits that exp(-k1) - 1 loses near 0
    raise ValueError(f"kind is {kind!r}; it must be 'k1', 'k2' or 'k3'")


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    kind: str,
    num_tokens: int | Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The KL as a term of the loss (times beta, by the caller), where it is not in the reward.

    Its gradient on the policy's own samples: k2 gives the gradient of KL in expectation, k3 (GRPO,
    Shao et al. 2024, eq. 4) that of the reverse divergence KL(reference || policy), equal to it to
    first order near the reference.  k1 is refused: its gradient is the score function, whose
    expectation is 0.

    logprobs (with gradient), ref_logprobs, response_mask: `[B, T]`.  num_tokens and weights as in
    `ppo_loss.policy_loss`.  Returns (scalar, {"loss/kl"}), summable as there.

    Raises ValueError for k1 and an unknown kind, otherwise as `check_mask` and `count`.
    """
    if kind == "k1":
        raise ValueError("KL kind k1 in the loss has zero expected gradient: set k2 or k3, or put the KL in the reward")
    check_mask(response_mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    estimate = kl_estimate(
        zero_outside(logprobs, response_mask), zero_outside(ref_logprobs.detach(), response_mask), kind
    )
    if weights is not None:
        check_mask(response_mask, weights=weights)
        estimate = estimate * zero_outside(weights.detach(), response_mask)
    loss = estimate.sum() / count(response_mask, num_tokens)  # outside the mask 0 - 0 gives 0 for every kind
    return loss, {"loss/kl": loss.detach()}

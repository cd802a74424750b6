"""Per-token rewards from a sequence's score and the KL penalty."""

from __future__ import annotations

from torch import Tensor

from rayrlhf.algorithms.masking import check_mask, zero_outside


def last_response_index(response_mask: Tensor) -> Tensor:
    """The position of each row's last True, i64 `[B]`.  mask: bool `[B, T]`, each row with a True."""
    length = response_mask.shape[1]
    return length - 1 - response_mask.long().flip(1).argmax(dim=1)


def token_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, beta: float) -> Tensor:
    """reward_t = -beta * kl_t on each response token, plus the score on the last one; 0 elsewhere.

    The last response token is the last True of the mask, whatever padding follows.

    scores `[B]`; kl `[B, T]` from `kl.kl_estimate`; response_mask bool `[B, T]`.  Returns `[B, T]`.
    Raises as `check_mask`, and ValueError where scores are not one a row.

    Source: Ouyang et al. 2022 (InstructGPT), eq. 2; per token as in Ziegler et al. 2019, section 2.2.
    """
    check_mask(response_mask, kl=kl)
    if scores.shape != kl.shape[:1]:
        raise ValueError(f"scores have shape {list(scores.shape)}, but kl has {list(kl.shape)}: one score a row")
    rewards = -beta * zero_outside(kl, response_mask)
    last = last_response_index(response_mask).unsqueeze(1)
    return rewards.scatter_add(1, last, scores.unsqueeze(1).to(rewards.dtype))

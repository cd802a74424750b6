"""Advantage estimators: GAE with a critic; GRPO and RLOO from groups of samples of one prompt.

None of them whitens: returns are made of the raw advantages, `masking.masked_whiten` comes after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.algorithms.masking import check_mask, zero_outside

GRPO_EPS = 1e-4


def gae(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the True tokens of each row.

    delta_t = r_t + gamma * V_next - V_t;  A_t = delta_t + gamma * lam * A_next;  return_t = A_t + V_t

    where "next" is the next True token: a hole in the mask (a tool's output, say) gives the same
    numbers as the sequence with the hole cut out.  After the last one, V_next is `bootstrap` and A_next is 0.

    rewards, values, response_mask: `[B, T]`; values[t] is of the state before token t.
    bootstrap `[B]`: the value of the state after the last token where the length limit cut the
    response, 0 where it ended by itself (terminal); None is 0 for all.
    Returns (advantages, returns), `[B, T]` both, not whitened, 0 outside the mask.
    Raises as `check_mask`, and ValueError for other shapes.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using GAE", eq. 16.
    """
    check_mask(response_mask, rewards=rewards, values=values)
    if rewards.dim() != 2:
        raise ValueError(f"gae takes [B, T], got shape {list(rewards.shape)}")
    if bootstrap is None:
        bootstrap = torch.zeros_like(rewards[:, 0])
    elif bootstrap.shape != rewards.shape[:1]:
        raise ValueError(f"bootstrap has shape {list(bootstrap.shape)}, rewards have {list(rewards.shape)}")
    rewards, values = zero_outside(rewards, response_mask), zero_outside(values, response_mask)

    next_value, carried = bootstrap, torch.zeros_like(bootstrap)
    columns: list[Tensor] = []
    # a token of all rows lies together in [T, B]; in [B, T] each is a cache line of its own
    by_token = (x.t().contiguous() for x in (rewards, values, response_mask))
    for reward, value, here in reversed(list(zip(*by_token, strict=True))):
        delta = reward + gamma * next_value - value
        carried = torch.where(here, delta + gamma * lam * carried, carried)
        next_value = torch.where(here, value, next_value)
        columns.append(carried)
    advantages = zero_outside(torch.stack(columns[::-1]).t().contiguous(), response_mask)
    return advantages, advantages + values


def grpo(scores: Tensor, group_size: int, scale_by_std: bool = True) -> Tensor:
    """(score - group mean) / (group std + 1e-4), the std unbiased; a group of equal scores gives exactly 0.

    `scale_by_std=False` leaves out the division (Dr. GRPO, Liu et al. 2025).

    scores `[B]`, the G = group_size samples of a prompt side by side.  Returns `[B]`.
    Raises ValueError unless group_size >= 2 divides B.

    Source: Shao et al. 2024, "DeepSeekMath", section 4.1.2 (outcome supervision); the eps is TRL's.
    """
    groups = _groups(scores, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale_by_std:
        centred = centred / (groups.std(dim=1, keepdim=True) + GRPO_EPS)
    return _zero_where_equal(centred, groups).reshape(-1)


def rloo(scores: Tensor, group_size: int) -> Tensor:
    """score - mean of the group's other scores (leave-one-out baseline).

    With the KL in the reward, `scores` are the sequences' scores less beta times their summed k1.

    scores `[B]`, the G = group_size samples of a prompt side by side.  Returns `[B]`.
    Raises ValueError unless group_size >= 2 divides B.

    Source: Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; for language models
    Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization" (RLOO).
    """
    groups = _groups(scores, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return _zero_where_equal(groups - others, groups).reshape(-1)


def _groups(scores: Tensor, group_size: int) -> Tensor:
    """`[B]` -> `[B / G, G]`."""
    if scores.dim() != 1:
        raise ValueError(f"scores must have shape [B], got {list(scores.shape)}")
    if group_size < 2 or scores.shape[0] % group_size:
        raise ValueError(
            f"{scores.shape[0]} scores do not make groups of {group_size}: the group size must be at least 2 "
            "(a sample is compared with others of its prompt) and divide the batch"
        )
    return scores.reshape(-1, group_size)


def _zero_where_equal(result: Tensor, groups: Tensor) -> Tensor:
    """Exact zeros for groups of equal scores: the rounding of their mean, over eps, is no signal."""
    return zero_outside(result, (groups != groups[:, :1]).any(dim=1, keepdim=True))

"""Losses of preference data: for a reward model (scores in) and for a policy (log-probabilities in).

Every loss is a mean over its elements.  Where a minibatch is split over microbatches or ranks, give
the global count (`num_pairs`, `num_examples`): the losses are then sums divided by it and add up,
and a microbatch without elements gives 0, connected to the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float | None = None, num_pairs: int | None = None
) -> Tensor:
    """mean of -log sigmoid(chosen - rejected - margin).

    chosen, rejected: scores `[N]`; margin `[N]` or a number, how much better chosen should be at least.
    Returns a scalar.  Raises ValueError for shapes that differ, and without pairs and `num_pairs`.

    Source: Ouyang et al. 2022 (InstructGPT), eq. 1 for K = 2; margin: Touvron et al. 2023 (Llama 2), eq. 2.
    """
    _same_shape(chosen=chosen, rejected=rejected)
    difference = chosen - rejected
    if margin is not None:
        if isinstance(margin, Tensor) and margin.dim() > 0:
            _same_shape(chosen=chosen, margin=margin)
        difference = difference - margin
    return _mean(-logsigmoid(difference), num_pairs)


def ranking(scores: Tensor) -> Tensor:
    """mean over the pairs i < j of -log sigmoid(s_i - s_j), all pairs of one prompt being one element.

    Pairs of one prompt are not independent; taken apart they overfit in an epoch (InstructGPT, 3.5).

    scores `[K]` of one prompt's responses, best first, K >= 2.  Returns a scalar; for several
    prompts, sum and divide by the number of prompts.  Raises ValueError for other shapes.

    Source: Ouyang et al. 2022 (InstructGPT), eq. 1.
    """
    if scores.dim() != 1 or scores.shape[0] < 2:
        raise ValueError(f"ranking takes one prompt's scores [K], K >= 2, got shape {list(scores.shape)}")
    better, worse = torch.triu_indices(scores.shape[0], scores.shape[0], offset=1, device=scores.device)
    return -logsigmoid(scores[better] - scores[worse]).mean()


def regression(scores: Tensor, targets: Tensor, num_examples: int | None = None) -> Tensor:
    """mean of (score - target)^2, for texts rated one by one; both `[N]`.

    Returns a scalar.  Raises ValueError for shapes that differ, and without examples and `num_examples`.

    Source: least squares; for a reward model's head as in Wang et al. 2024, "HelpSteer2".
    """
    _same_shape(scores=scores, targets=targets)
    return _mean((scores - targets) ** 2, num_examples)


def binary(scores: Tensor, is_good: Tensor, num_examples: int | None = None) -> Tensor:
    """mean of -log sigmoid(score) of good texts and -log sigmoid(-score) of bad ones: the score is the log-odds
    of good.

    scores f32 `[N]`, is_good bool `[N]`.  Returns a scalar.  Raises ValueError for shapes that differ, and
    without examples and `num_examples`.

    Source: logistic regression, Cox 1958, "The Regression Analysis of Binary Sequences".
    """
    _same_shape(scores=scores, is_good=is_good)
    return _mean(-logsigmoid(torch.where(is_good, scores, -scores)), num_examples)


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    num_pairs: int | None = None,
) -> Tensor:
    """mean of -log sigmoid(beta * h), h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected).

    Log-probabilities summed over each response, `[N]`.  Returns a scalar.
    Raises ValueError for shapes that differ, beta not above 0, and without pairs and `num_pairs`.

    Source: Rafailov et al. 2023, "Direct Preference Optimization", eq. 7.
    """
    h = _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    return _mean(-logsigmoid(beta * h), num_pairs)


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    num_pairs: int | None = None,
) -> Tensor:
    """mean of (h - 1 / (2 beta))^2, h as in `dpo`; beta is the paper's tau.

    Log-probabilities summed (not averaged) over each response, `[N]`.  Returns a scalar; raises as `dpo`.

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", eq. 17.
    """
    h = _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    return _mean((h - 1 / (2 * beta)) ** 2, num_pairs)


def kto(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    kl: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    num_examples: int | None = None,
) -> Tensor:
    """mean over chosen and rejected examples together, which need not be pairs, of

    desirable_weight   * (1 - sigmoid(beta * (policy_chosen - ref_chosen - kl)))
    undesirable_weight * (1 - sigmoid(beta * (kl - (policy_rejected - ref_rejected))))

    Log-probabilities summed over each response, `[N]` chosen and `[M]` rejected; either may be empty.
    kl: a scalar, the batch's estimate of KL(policy || reference) in nats a sequence; no gradient
    passes through it and a negative estimate counts as 0 (the paper's z_0 = max(0, .)).
    Returns a scalar.  Raises ValueError for shapes that differ, a kl that is no scalar, beta not
    above 0, and without examples and `num_examples`.

    Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization",
    section 4 (L_KTO).
    """
    _same_shape(policy_chosen=policy_chosen, ref_chosen=ref_chosen)
    _same_shape(policy_rejected=policy_rejected, ref_rejected=ref_rejected)
    _check_beta(beta)
    kl = torch.as_tensor(kl, dtype=policy_chosen.dtype, device=policy_chosen.device)
    if kl.numel() != 1:
        raise ValueError(f"kl must be a scalar of the whole batch, got shape {list(kl.shape)}")
    baseline = kl.detach().reshape(()).clamp(min=0)
    chosen = torch.sigmoid(beta * (policy_chosen - ref_chosen - baseline))
    rejected = torch.sigmoid(beta * (baseline - (policy_rejected - ref_rejected)))
    losses = torch.cat([desirable_weight * (1 - chosen), undesirable_weight * (1 - rejected)])
    return _mean(losses, num_examples)


def _margin(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    _same_shape(policy_chosen=policy_chosen, ref_chosen=ref_chosen)
    _same_shape(policy_rejected=policy_rejected, ref_rejected=ref_rejected)
    _same_shape(policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    _check_beta(beta)
    return (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0 (at 0 the preferences have no effect)")


def _same_shape(**tensors: Tensor) -> None:
    """All `[N]`; broadcasting would quietly compare everything with everything."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"one number an example is wanted, [N] alike, got {shapes}")


def _mean(losses: Tensor, given: int | None) -> Tensor:
    n = losses.numel() if given is None else given
    if not n > 0:
        raise ValueError(f"the count to divide by is {n}: no examples here and no global count given")
    return losses.sum() / n

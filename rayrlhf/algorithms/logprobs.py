"""Log-probabilities and entropies of tokens, of the distribution they are sampled from.

Policy, old, reference and sampled log-probabilities are all log_softmax(logits / temperature),
the temperature being the sampling one: otherwise the ratio is not 1 at the first minibatch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrlhf.algorithms.alignment import shift_right


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(tokens[t] | tokens[<t]) as entry t; entry 0, which nothing predicts, is 0.0.

    logits `[B, T, V]` as the model returns them for `tokens` i64 `[B, T]`, any float dtype (computed
    in float32).  Returns f32 `[B, T]`; entries of padding mean nothing, mask them.

    Raises ValueError for shapes that do not fit and for a temperature that is not above 0.
    """
    _check(logits, tokens)
    following = torch.roll(tokens, -1, dims=1)  # the last one wraps around, and shift_right drops it
    logprobs = _log_softmax(logits, temperature).gather(-1, following.unsqueeze(-1)).squeeze(-1)
    return shift_right(logprobs)


def token_logprobs_and_entropy(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, entropy_grad: bool = True
) -> tuple[Tensor, Tensor]:
    """(`token_logprobs`, `token_entropy`) from one log_softmax, the largest tensor of a policy update.

    `entropy_grad` False: the entropy is only watched, and nothing is kept for its gradient.
    """
    _check(logits, tokens)
    whole = _log_softmax(logits, temperature)
    following = torch.roll(tokens, -1, dims=1)
    logprobs = whole.gather(-1, following.unsqueeze(-1)).squeeze(-1)
    watched = whole if entropy_grad else whole.detach()
    return shift_right(logprobs), shift_right(-(watched.exp() * watched).sum(-1))


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the distribution token t was drawn from, as entry t; entry 0 is 0.0.

    logits `[B, T, V]`, finite.  Returns f32 `[B, T]`.  Raises ValueError as `token_logprobs`.
    """
    logprobs = _log_softmax(logits, temperature)
    return shift_right(-(logprobs.exp() * logprobs).sum(-1))


def _check(logits: Tensor, tokens: Tensor) -> None:
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(f"logits have shape {list(logits.shape)}, but tokens have {list(tokens.shape)}")


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (greedy has no log-probabilities)")
    scaled = logits.float()
    if temperature != 1:  # dividing by 1 costs a tenth of a small model's step
        scaled = scaled / temperature
    return torch.log_softmax(scaled, dim=-1)

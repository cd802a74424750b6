"""Log-probabilities and entropies of tokens, of the distribution they are sampled from.

Policy, old, reference and sampled log-probabilities are all log_softmax(logits / temperature),
the temperature being the sampling one: otherwise the ratio is not 1 at the first minibatch.

log_softmax in float32 is never held whole: a chunk of rows at a time stays in the cache, and the gradient is made from
the logits once more.  With x = logits / temperature, p = softmax(x), H the entropy and y the token:

    log p(y) = x_y - logsumexp(x)          d log p(y) / dx = onehot(y) - p
    H        = -sum(p log p)               dH / dx         = -p (log p + H)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rayrlhf.algorithms.alignment import shift_right

_CHUNK = {"cpu": 2**19, "cuda": 2**26}  # numbers of a chunk: a CPU's cache, and enough for a GPU


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(tokens[t] | tokens[<t]) as entry t; entry 0, which nothing predicts, is 0.0.

    logits `[B, T, V]` as the model returns them for `tokens` i64 `[B, T]`, any float dtype (computed
    in float32).  Returns f32 `[B, T]`; entries of padding mean nothing, mask them.

    Raises ValueError for shapes that do not fit and for a temperature that is not above 0.
    """
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(f"logits have shape {list(logits.shape)}, but tokens have {list(tokens.shape)}")
    following = torch.roll(tokens, -1, dims=1)  # the last one wraps around, and shift_right drops it
    return shift_right(chosen_logprobs(logits.flatten(0, 1), following.flatten(), temperature).view(tokens.shape))


def chosen_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(tokens[i]) under logits[i]: f32 `[n]` of logits `[n, V]`, any float dtype, and tokens i64 `[n]`.

    Raises ValueError as `token_logprobs`.
    """
    return _chosen(logits, tokens, temperature, has_entropy=False)[0]


def chosen_logprobs_and_entropy(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(`chosen_logprobs`, the entropy in nats of each row's distribution), f32 `[n]` each."""
    return _chosen(logits, tokens, temperature, has_entropy=True)


def _chosen(logits: Tensor, tokens: Tensor, temperature: float, has_entropy: bool) -> tuple[Tensor, Tensor]:
    if logits.dim() != 2 or logits.shape[:1] != tokens.shape:
        raise ValueError(f"logits have shape {list(logits.shape)}, but tokens have {list(tokens.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (greedy has no log-probabilities)")
    logprobs, entropies = _ChosenLogprobs.apply(logits, tokens, temperature, has_entropy)
    return logprobs, entropies


class _ChosenLogprobs(torch.autograd.Function):
    """See the equations above."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, has_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
        norms, entropies = torch.empty_like(logprobs), torch.zeros_like(logprobs)
        for some in _chunks(logits):
            x = _scaled(logits[some], temperature)
            norms[some] = norm = torch.logsumexp(x, dim=-1)
            logprobs[some] = x.gather(-1, tokens[some, None])[:, 0] - norm
            if has_entropy:
                log_p = x - norm[:, None]
                entropies[some] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(logits, tokens, norms, entropies)
        ctx.temperature, ctx.has_entropy = temperature, has_entropy
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits, tokens, norms, entropies = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for some in _chunks(logits):
            log_p = _scaled(logits[some], ctx.temperature) - norms[some, None]
            p = log_p.exp()
            out = torch.zeros_like(p) if grad_logprobs is None else p * -grad_logprobs[some, None]
            if grad_entropies is not None and ctx.has_entropy:
                out -= (grad_entropies[some, None] * p).mul_(log_p.add_(entropies[some, None]))
            if grad_logprobs is not None:
                out.scatter_add_(1, tokens[some, None], grad_logprobs[some, None])
            grad[some] = out if ctx.temperature == 1 else out.div_(ctx.temperature)
        return grad, None, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    rows = max(1, _CHUNK.get(logits.device.type, 2**26) // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature

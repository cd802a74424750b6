"""Forward passes over texts of unlike lengths, without computing anything of padding.

    rows, right-padded [B, T]      the real tokens, one row after the other [1, N]      back as asked
    | a a a a . |                  | a a a a b b c c c |  embeddings, matrices,         [B, T, ...], or only
    | b b . . . |   ------->         norms, heads: one token at a time      ------->    the tokens asked for
    | c c c . . |                  attention alone sees rows: padded, for its kernel

Padding is the largest waste on short texts (half of a batch of sentences), and attention the smallest part of a pass
over them: so only attention gets rows, in groups whose shortest is at least half as long as their longest.

No attention mask is passed.  Causal attention over right-padded rows never lets a real token see padding, so real
positions are exact whatever the pad token is (pad == eos included), and the kernel takes its fast causal path.

A model whose layers mix tokens by other means than attention (state spaces, convolutions, virtual tokens before the
text) computes whole right-padded rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_ATTENTION = "rayrlhf_rows"  # the name under which transformers finds `_attention`
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Tokens of the longest row up to which CPUs attend in float32, under autocast too: their bfloat16 kernel goes back over
# 28 rows of 34 tokens in 13.6 ms where float32 takes 3.6, over 256 to 512 tokens in the same time, over more in less
_SHORT = 512
_CAN = "computes_without_padding"  # an attribute of the model, the answer of `leaves_padding_out`


def leaves_padding_out(model: Any) -> bool:
    """Whether passes through `model` compute nothing of padding: what a pass costs is then its real tokens."""
    if not hasattr(model, _CAN):
        setattr(model, _CAN, _can_leave_padding_out(model))
    return bool(getattr(model, _CAN))


def _can_leave_padding_out(model: Any) -> bool:
    config, base = getattr(model, "config", None), getattr(model, "base_model_prefix", None)
    if config is None or base is None or not getattr(model, "_supports_attention_backend", False):
        return False
    peft = getattr(model, "active_peft_config", None)
    return (
        not (peft is not None and peft.is_prompt_learning)
        and not getattr(model, "_is_stateful", False)
        and set(getattr(config, "layer_types", None) or ()) <= _KNOWN_LAYERS
        and getattr(config, "attn_logit_softcapping", None) is None
        and not any("sinks" in name for name, _ in model.named_parameters())
        and not any(isinstance(module, torch.nn.Conv1d) for module in model.modules())
    )


# ---- what callers ask for


def causal_logits(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Logits [B, T, V] of right-padded `tokens` i64[B, T]; entry t predicts token t + 1.

    Entries at and after `lengths` i64[B] are 0.  B may be 0: the result is then empty but still attached to every
    parameter.
    """
    return _padded(_of_rows(model, model, "logits", tokens, lengths), tokens, lengths)


def chosen_logits(model: Any, tokens: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Logits [n, V] that predict the n True tokens of `mask` bool[B, T], in order; no others are computed.

    The first token of a row, which nothing predicts, and padding may not be True: ValueError.
    """
    starts = lengths.cumsum(0) - lengths
    if bool(mask[:, :1].any()):
        raise ValueError("mask has the first token of a row, which nothing predicts")
    rows, columns = mask.nonzero(as_tuple=True)
    if bool((columns >= lengths[rows]).any()):
        raise ValueError("mask has tokens of padding")
    return _of_rows(model, model, "logits", tokens, lengths, keep=starts[rows] + columns - 1)


def packed_logits(model: Any, tokens: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Logits [n, V] that predict the n True tokens of `mask` bool[N], of `tokens` i64[N]: texts of `lengths` i64[P] one
    after the other, none seeing another, whose first tokens are not True."""
    if int(lengths.sum()) != len(tokens):
        raise ValueError(f"lengths of {int(lengths.sum())} tokens in all do not fit {len(tokens)} tokens")
    return _states(model, model, "logits", tokens, lengths, mask.nonzero()[:, 0] - 1)


def last_hidden(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states [B, T, D] after the last norm, of the model under its head; 0 from `lengths` on.  B may be 0."""
    body = getattr(model, model.base_model_prefix)
    return _padded(_of_rows(model, body, "last_hidden_state", tokens, lengths), tokens, lengths)


# ---- rows to real tokens and back


def _real(tokens: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


def _of_rows(model: Any, body: Any, name: str, tokens: Tensor, lengths: Tensor, keep: Tensor | None = None) -> Tensor:
    """`_states` of right-padded rows."""
    if lengths.shape != tokens.shape[:1]:
        raise ValueError(f"lengths {list(lengths.shape)} do not fit tokens {list(tokens.shape)}")
    return _states(model, body, name, tokens[_real(tokens, lengths)], lengths, keep)


def _padded(flat: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, ...] of flat [N, ...]."""
    padded = flat.new_zeros((*tokens.shape, flat.shape[-1]))
    padded[_real(tokens, lengths)] = flat
    return padded


def _states(model: Any, body: Any, name: str, flat: Tensor, lengths: Tensor, keep: Tensor | None = None) -> Tensor:
    """[N, ...]: what `body` computes of each token, the output `name`; of the tokens `keep` alone, i64[n] of [0, N),
    where given.

    A rank that has run out of rows still has to run every module: ZeRO 3 gathers weights inside the forward and ZeRO 2
    reduces gradients inside the backward, on all ranks together.  So without rows, or tokens to keep, one dummy is
    computed, and none of it returned.
    """
    count = len(flat) if keep is None else len(keep)
    if not len(flat):
        flat, lengths = flat.new_zeros(1), lengths.new_ones(1)
    if keep is not None and not count:
        keep = flat.new_zeros(1)
    compute = _without_padding if leaves_padding_out(model) else _with_padding
    return compute(model, body, name, flat, lengths, keep)[:count]


def _without_padding(model: Any, body: Any, name: str, flat: Tensor, lengths: Tensor, keep: Tensor | None) -> Tensor:
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    positions = torch.arange(len(flat), device=flat.device) - starts
    with _attending_to_rows(model, lengths), _head_of(model, None if keep is None else lambda x: x[0, keep]):
        output = body(input_ids=flat[None], position_ids=positions[None], use_cache=False)
    states: Tensor = getattr(output, name)[0]
    return states


def _with_padding(model: Any, body: Any, name: str, flat: Tensor, lengths: Tensor, keep: Tensor | None) -> Tensor:
    rows = flat.new_zeros((len(lengths), int(lengths.max())))
    real = _real(rows, lengths)
    rows[real] = flat
    index = real.flatten().nonzero()[:, 0]  # of each real token among all
    if keep is not None:
        index = index[keep]

    def chosen(states: Tensor) -> Tensor:
        # a tuned prompt's virtual tokens have states too, before the text's
        return states[:, states.shape[1] - rows.shape[1] :].flatten(0, 1)[index]

    with _head_of(model, None if keep is None else chosen):
        states = getattr(body(input_ids=rows, use_cache=False), name)
    return states[0] if keep is not None else chosen(states)


@contextmanager
def _head_of(model: Any, choose: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Inside, the head of `model` is given `choose(hidden states)` [n, D] in the place of all of them, and returns
    [1, n, V]; None: it is given all."""
    if choose is None:
        yield
        return
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, inputs: (choose(inputs[0])[None], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


# ---- attention over the rows of one flat sequence


class _Spread(torch.autograd.Function):
    """Rows [n, ...] to their places in zeros [size, ...]; the gradient is collected.  (Indexing's own gradient adds up
    where a place is named twice, which none is here, one after the other.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros((size, *x.shape[1:])).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """The other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros((ctx.size, *grad.shape[1:])).index_copy_(0, index, grad), None


class _Rows:
    """The rows of a flat sequence for attention: longest first, in groups that are padded to their longest, whose
    shortest is at least half as long.  One group after the other they are `padded` tokens."""

    def __init__(self, lengths: Tensor) -> None:
        sizes = lengths.tolist()
        order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
        self.groups: list[tuple[int, int]] = []  # of each its number of rows, and the longest
        first, padded, starts = 0, 0, [0] * len(sizes)  # the latter: place of each row's first token
        while first < len(order):
            longest, last = sizes[order[first]], first
            while last < len(order) and longest <= 2 * sizes[order[last]]:
                starts[order[last]] = padded
                padded, last = padded + longest, last + 1
            self.groups.append((last - first, longest))
            first = last
        is_in_order = padded == sum(sizes) and order == list(range(len(sizes)))
        self._place = None if is_in_order else _places(lengths, starts)  # of each token among the padded ones, i64[N]

    def padded(self, flat: Tensor) -> list[Tensor]:
        """Of each group [rows, H, longest, D], of `flat` [H, N, D]."""
        tokens = flat.transpose(0, 1)
        if self._place is not None:
            tokens = _Spread.apply(tokens, self._place, sum(rows * longest for rows, longest in self.groups))
        parts = tokens.split([rows * longest for rows, longest in self.groups])
        return [
            part.reshape(rows, longest, *part.shape[1:]).transpose(1, 2)
            for part, (rows, longest) in zip(parts, self.groups, strict=True)
        ]

    def flat(self, padded: list[Tensor]) -> Tensor:
        """[N, H, D], of each group's [rows, longest, H, D]."""
        tokens = torch.cat([part.flatten(0, 1) for part in padded])
        return tokens if self._place is None else _Collect.apply(tokens, self._place)


def _places(lengths: Tensor, starts: list[int]) -> Tensor:
    first = torch.tensor(starts, device=lengths.device) - (lengths.cumsum(0) - lengths)
    place = torch.repeat_interleave(first, lengths)
    return place + torch.arange(len(place), device=lengths.device)


_ROWS: ContextVar[_Rows] = ContextVar("the rows of a flat sequence")
_SWITCHED = threading.Lock()  # a model's attention is switched for one pass at a time


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: `query` [1, H, N, D] of the flat sequence, and out [1, N, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, out, inputs = _ROWS.get(), [], [query[0], key[0], value[0]]
    is_short = query.device.type == "cpu" and rows.groups[0][1] <= _SHORT
    if is_short:
        inputs = [x.float() if x.dtype == torch.bfloat16 else x for x in inputs]
    with torch.autocast("cpu", enabled=False) if is_short else nullcontext():
        for q, k, v in zip(*map(rows.padded, inputs), strict=True):
            mask, longest = None, q.shape[2]
            if sliding_window is not None and longest > sliding_window:
                place = torch.arange(longest, device=query.device)
                ago = place[:, None] - place
                mask = ((ago >= 0) & (ago < sliding_window))[None, None]
            out.append(sdpa_attention_forward(module, q, k, v, mask, dropout=dropout, scaling=scaling)[0])
    return rows.flat(out)[None].to(value.dtype), None


@contextmanager
def _attending_to_rows(model: Any, lengths: Tensor) -> Iterator[None]:
    """Inside, attention of `model` over a flat sequence is that of its rows."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
    config = model.config
    with _SWITCHED:
        before, token = config._attn_implementation, _ROWS.set(_Rows(lengths))
        config._attn_implementation = _ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = before
            _ROWS.reset(token)

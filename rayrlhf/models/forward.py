"""Forward passes over right-padded batches.

No attention mask is passed.  Causal attention over right-padded rows never lets a real token see
padding, so real positions are exact whatever the pad token is (pad == eos included), positions
are 0, 1, 2, ..., and the attention kernel takes its fast causal path.

A model that packs (`use_packing`) computes the same without the padding: the rows stand one after the
other, positions start anew with each, and from them transformers makes attention block-diagonal.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_PACKS = "packs_rows"  # an attribute of the model, read by every pass


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """What a forward pass runs in, by `EngineConfig.precision`: with bf16 matrix products in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def use_packing(model: Any) -> None:
    """From now on passes through `model` leave padding out."""
    setattr(model, _PACKS, True)


def packs(model: Any) -> bool:
    """Whether passes through `model` leave padding out."""
    return bool(getattr(model, _PACKS, False))


def _states(model: Any, body: Any, name: str, tokens: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, ...]: what `body` computes of each token, the output `name`."""
    if not packs(model) or not len(tokens):
        rows = _rows_or_one(tokens)
        states = getattr(body(input_ids=rows, use_cache=False), name)
        # a tuned prompt's virtual tokens have states too, before the text's
        return states[: len(tokens), states.shape[1] - rows.shape[1] :]
    columns = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    real = columns < lengths[:, None]
    flat = getattr(_packed(body, tokens[real], columns[real]), name)[0]
    padded = flat.new_zeros((*tokens.shape, flat.shape[-1]))
    padded[real] = flat
    return padded


def _packed(body: Any, tokens: Tensor, positions: Tensor) -> Any:
    """The output of `body` for texts that stand one after the other, i64 `[N]` each."""
    return body(input_ids=tokens[None], position_ids=positions[None], use_cache=False)


def _rows_or_one(tokens: Tensor) -> Tensor:
    """`tokens`, or one dummy row in place of none.

    A rank that has run out of rows still has to run every module: ZeRO 3 gathers weights inside
    the forward and ZeRO 2 reduces gradients inside the backward, on all ranks together.
    """
    return tokens if tokens.shape[0] else tokens.new_zeros((1, max(1, tokens.shape[1])))


def causal_logits(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Logits [B, T, V] of right-padded `tokens` i64[B, T]; entry t predicts token t + 1.

    Entries at and after `lengths` i64[B] are finite and mean nothing.  B may be 0: the result is
    then empty but still attached to every parameter.
    """
    _check(tokens, lengths)
    return _states(model, model, "logits", tokens, lengths)


def packed_logits(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Logits [1, N, V] of `tokens` i64[N]: texts of `lengths` i64[P] one after the other, none seeing another."""
    if int(lengths.sum()) != len(tokens):
        raise ValueError(f"lengths of {int(lengths.sum())} tokens in all do not fit {len(tokens)} tokens")
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    logits: Tensor = _packed(model, tokens, torch.arange(len(tokens), device=tokens.device) - starts).logits
    return logits


def last_hidden(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states [B, T, D] after the last norm, of the model under its head; B may be 0."""
    _check(tokens, lengths)
    return _states(model, getattr(model, model.base_model_prefix), "last_hidden_state", tokens, lengths)


def _check(tokens: Tensor, lengths: Tensor) -> None:
    if lengths.shape != tokens.shape[:1]:
        raise ValueError(f"lengths {list(lengths.shape)} do not fit tokens {list(tokens.shape)}")

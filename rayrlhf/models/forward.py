"""Forward passes over right-padded batches.

No attention mask is passed.  Causal attention over right-padded rows never lets a real token see
padding, so real positions are exact whatever the pad token is (pad == eos included), positions
are 0, 1, 2, ..., and the attention kernel takes its fast causal path.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
    rows = _rows_or_one(tokens)
    logits = model(input_ids=rows, use_cache=False).logits
    # a tuned prompt's virtual tokens have logits too, before the text's
    return logits[: tokens.shape[0], logits.shape[1] - rows.shape[1] :]


def last_hidden(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states [B, T, D] after the last norm, of the model under its head; B may be 0."""
    _check(tokens, lengths)
    base = getattr(model, model.base_model_prefix)
    hidden = base(input_ids=_rows_or_one(tokens), use_cache=False).last_hidden_state
    return hidden[: tokens.shape[0]]


def _check(tokens: Tensor, lengths: Tensor) -> None:
    if lengths.shape != tokens.shape[:1]:
        raise ValueError(f"lengths {list(lengths.shape)} do not fit tokens {list(tokens.shape)}")

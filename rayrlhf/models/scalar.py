"""A language model with a scalar head: the reward model and the critic.

It is a standard sequence-classification checkpoint with one label, so plain transformers loads
it and computes the same score.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayrlhf.errors import ModelError
from rayrlhf.models.causal_lm import check_known, load_tokenizer, with_pad_apart, without_dropout
from rayrlhf.models.forward import last_hidden
from rayrlhf.models.pretrained import model_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# a fresh head starts near zero (Ziegler et al. 2019 start at zero) and still passes gradients on
HEAD_STD = 0.01
HEAD = "score.weight"  # its name in a checkpoint


def load_scalar(folder: str) -> PreTrainedModel:
    """The model of `folder` with a head of one output, float32, dropout off.

    A causal LM gets a fresh small head (from torch's global generator); a sequence-classification
    checkpoint keeps its own, which must have one output (ModelError otherwise).  Its pad token is that of
    `with_pad_apart`, for which the embeddings grow by one where they have no room.
    """
    from transformers import AutoModelForSequenceClassification

    check_known(folder, folder)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        architectures = json.load(file).get("architectures") or [""]
    has_head = architectures[0].endswith("ForSequenceClassification")
    labels: dict[str, Any] = {} if has_head else {"num_labels": 1}
    model = model_of(AutoModelForSequenceClassification, folder, dtype=torch.float32, **labels)
    if model.config.num_labels != 1 or not hasattr(model, "score"):
        raise ModelError(
            f"{folder} is a classifier with {model.config.num_labels} labels (architecture {architectures[0]}); "
            "a reward model or critic needs one output named `score`: give a causal LM or a reward model"
        )
    if not has_head:
        torch.nn.init.normal_(model.score.weight, std=HEAD_STD)
    pad = with_pad_apart(load_tokenizer(folder)).pad_token_id
    if pad >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(pad + 1, mean_resizing=False)
    model.config.pad_token_id = pad
    return without_dropout(model)


class ShiftedHead:
    """A model whose head gives `hidden @ weights` less, for `position_scores` and `sequence_scores`."""

    def __init__(self, model: Any, weights: Tensor) -> None:
        """`weights`: `[D]`."""
        self._whole, self._weights = model, weights.float()  # a model's body may be called `model`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def score(self, hidden: Tensor) -> Tensor:
        # not a matrix product, which would be in bfloat16 under autocast
        return self._whole.score(hidden) - (hidden.float() * self._weights).sum(-1, keepdim=True)


def position_scores(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The head on every position's hidden state, f32[B, T]; 0.0 at and after `lengths`.

    Entry t has read tokens 0..t; as a value it is the value of the state after token t.
    """
    hidden = last_hidden(model, tokens, lengths)
    with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would leave a score 8 bits
        scores = model.score(hidden.float())[..., 0]
    real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return torch.where(real, scores, 0.0)


def sequence_scores(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The score of each sequence, f32[B]: the head at its last token."""
    ends = last_hidden(model, tokens, lengths)[torch.arange(len(tokens), device=tokens.device), lengths - 1]
    with torch.autocast(ends.device.type, enabled=False):
        scores: Tensor = model.score(ends.float())[..., 0]
    return scores

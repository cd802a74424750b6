"""A reward model's scores, shifted so that demonstrations average 0 (Ouyang et al. 2022, section 3.5).

The head has no bias in a standard checkpoint, so the shift is made by its weights (`head_shift`).  Training goes on
with the head as it is; only the saved model, and validations, have the shifted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rayrlhf.algorithms.head_shift import unit_direction
from rayrlhf.models.forward import last_hidden, leaves_padding_out
from rayrlhf.models.scalar import HEAD, ShiftedHead
from rayrlhf.training.engine import Engine
from rayrlhf.training.losses import Row
from rayrlhf.training.microbatches import microbatches, pad


@dataclass(frozen=True)
class HeadShift:
    """What is taken from the head's weights, f64 `[D]`, and what is known of it."""

    weights: Tensor
    metrics: dict[str, float]

    def view(self, model: Any) -> Any:
        """`model` with the shifted head, without a copy."""
        return ShiftedHead(model, self.weights)

    def applied(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a model with the shifted head; on ranks that hold none, none."""
        if HEAD not in whole:
            return whole
        head = whole[HEAD]
        return whole | {HEAD: (head.double() - self.weights.to(head.device)).to(head.dtype)}


def head_shift(engine: Engine, rows: Sequence[Row], token_budget: int) -> HeadShift:
    """The shift that makes the mean score of `rows` (encoded prompt_completion) 0; every rank calls it.

    Metrics: `eval/demonstration_score`, the mean before, which is what all scores lose; and
    `eval/demonstration_noise`, the root mean square by which a finished text's loss differs from it.
    """
    whole, cut, scores = _states(engine, rows, token_budget)
    direction, deviation = unit_direction(whole, cut)
    mean = float(scores.double().mean())
    weights = (direction * mean).float()
    dist.broadcast(weights, 0)  # ranks on other machines may differ in the last digit
    metrics = {"eval/demonstration_score": mean, "eval/demonstration_noise": abs(mean) * deviation}
    return HeadShift(weights.double(), metrics)


def _states(engine: Engine, rows: Sequence[Row], token_budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states `[N, D]` of each row's last token and of the one halfway through its completion, and the
    scores `[N]`, in float32, on every rank."""
    texts = [row["input_ids"] for row in rows]
    middles = torch.tensor([len(row["input_ids"]) - 1 - sum(row["loss_mask"]) // 2 for row in rows])
    found: Tensor | None = None
    with engine.eval_mode(), torch.autocast(engine.device.type, enabled=False):
        is_packed = leaves_padding_out(engine.module)
        for numbers in microbatches(list(map(len, texts)), token_budget, engine.world_size, engine.rank, is_packed):
            tokens, lengths = pad([texts[n] for n in numbers], engine.device)
            hidden = last_hidden(engine.module, tokens, lengths)
            index = torch.arange(len(numbers), device=engine.device)
            ends, cuts = hidden[index, lengths - 1], hidden[index, middles[numbers].to(engine.device)]
            part = torch.cat([ends, cuts, engine.module.score(ends)], dim=1).float()
            if found is None:
                found = part.new_zeros(len(rows), part.shape[1])
            found[numbers.to(engine.device)] = part
    assert found is not None, "there is a microbatch on every rank"
    dist.all_reduce(found)
    size = found.shape[1] // 2
    return found[:, :size], found[:, size : 2 * size], found[:, -1]

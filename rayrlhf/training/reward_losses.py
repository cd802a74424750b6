"""What a reward model learns from other rows than pairs: rankings, ratings, labels.

Shares add up as those of `losses` do; here the count is one of prompts (rankings) or texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rayrlhf.algorithms.preference_loss import binary, ranking, regression
from rayrlhf.models import scalar
from rayrlhf.training.flops import Text
from rayrlhf.training.losses import PairLoss, Row, RowByRow, num_tokens, numbers
from rayrlhf.training.microbatches import pad


class RankingLoss(PairLoss):
    """K-wise ranking (Ouyang et al. 2022, eq. 1): all pairs of one prompt's texts, mean over pairs, then over prompts.

    A row's K texts go through the model in one microbatch; K may differ by row.  The metrics of a prompt are
    means over its pairs too, so with K = 2 everything is as with pairs.
    """

    def load(self, folder: str) -> Any:
        return scalar.load_scalar(folder)

    def pass_tokens(self, row: Row, is_packed: bool) -> int:
        return num_tokens(self.texts(row)) if is_packed else len(row["ranked_ids"]) * max(map(len, row["ranked_ids"]))

    def texts(self, row: Row) -> list[Text]:
        return [Text(len(ids), 0) for ids in row["ranked_ids"]]

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        scores = scalar.sequence_scores(model, *pad([text for row in rows for text in row["ranked_ids"]], device))
        shares = {"loss": scores[:0].sum()} | self.reward_shares(scores[:0], scores[:0], count)
        for prompt in scores.split([len(row["ranked_ids"]) for row in rows]) if rows else ():
            better, worse = torch.triu_indices(len(prompt), len(prompt), offset=1, device=device)
            found = self.reward_shares(prompt[better], prompt[worse], count * len(better))
            found["loss"] = ranking(prompt) / count
            shares = {name: share + found[name] for name, share in shares.items()}
        return shares


class _TextLoss(RowByRow):
    """What losses of single texts have in common."""

    def load(self, folder: str) -> Any:
        return scalar.load_scalar(folder)

    def pass_tokens(self, row: Row, is_packed: bool) -> int:
        return len(row["input_ids"])

    def texts(self, row: Row) -> list[Text]:
        return [Text(len(row["input_ids"]), 0)]

    def count(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def scores(self, model: Any, rows: Sequence[Row], device: torch.device) -> Tensor:
        return scalar.sequence_scores(model, *pad([row["input_ids"] for row in rows], device))


class RegressionLoss(_TextLoss):
    """Squared error of the score against a rating, mean over texts."""

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        scores, targets = self.scores(model, rows, device), numbers(rows, "score", device)
        error = (scores.detach() - targets).abs().sum() / count
        return {"loss": regression(scores, targets, num_examples=count), "rewards/absolute_error": error}

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        return {"eval/loss": shares["loss"], "eval/mae": shares["rewards/absolute_error"]}


class BinaryLoss(_TextLoss):
    """Cross-entropy of a label, the score being the log-odds of good; mean over texts."""

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        scores = self.scores(model, rows, device)
        good = torch.tensor([row["label"] for row in rows], dtype=torch.bool, device=device)
        right = ((scores.detach() > 0) == good).sum() / count
        return {"loss": binary(scores, good, num_examples=count), "rewards/accuracies": right}

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        return {"eval/loss": shares["loss"], "eval/accuracy": shares["rewards/accuracies"]}

"""What a supervised stage learns: how its rows are measured, loaded and scored.

Every number a loss returns is this microbatch's share of the minibatch's: divided by the global
count of loss tokens (pairs), so that shares add up over microbatches and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rayrlhf.algorithms.logprobs import token_logprobs
from rayrlhf.algorithms.preference_loss import bradley_terry, dpo, ipo
from rayrlhf.models import causal_lm, scalar
from rayrlhf.models.forward import causal_logits
from rayrlhf.training.microbatches import pad

Row = dict[str, Any]


class Loss(Protocol):
    """A supervised objective."""

    def load(self, folder: str) -> Any:
        """The model to train, from a Hugging Face folder."""
        ...

    def padded_tokens(self, row: Row) -> int:
        """Tokens that `row` takes in a microbatch where it is the longest."""
        ...

    def tokens(self, row: Row) -> int:
        """Tokens that `row` has."""
        ...

    def count(self, rows: Sequence[Row]) -> int:
        """What the loss of `rows` is divided by."""
        ...

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        """Shares of `loss` (with gradients) and of metrics (without); `rows` may be empty."""
        ...

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        """Metrics of a validation from the summed shares."""
        ...


class CausalLoss:
    """Mean cross-entropy of the next token over the tokens of `loss_mask`."""

    def load(self, folder: str) -> Any:
        return causal_lm.load_causal_lm(folder)

    def padded_tokens(self, row: Row) -> int:
        return len(row["input_ids"])

    def tokens(self, row: Row) -> int:
        return len(row["input_ids"])

    def count(self, rows: Sequence[Row]) -> int:
        return sum(sum(row["loss_mask"][1:]) for row in rows)  # nothing predicts the first token

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        tokens, lengths = pad([row["input_ids"] for row in rows], device)
        mask = pad([row["loss_mask"] for row in rows], device)[0].bool()
        mask[:, 0] = False
        logprobs = token_logprobs(causal_logits(model, tokens, lengths), tokens)
        return {"loss": -torch.where(mask, logprobs, 0.0).sum() / count}

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        return {"eval/loss": shares["loss"]}


class _PairLoss:
    """What losses of chosen over rejected texts have in common."""

    def padded_tokens(self, row: Row) -> int:
        return pair_padded_tokens(row)

    def tokens(self, row: Row) -> int:
        return len(row["chosen_ids"]) + len(row["rejected_ids"])

    def count(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        return {
            "eval/loss": shares["loss"],
            "eval/accuracy": shares["rewards/accuracies"],
            "eval/margin": shares["rewards/margins"],
        }

    @staticmethod
    def reward_shares(chosen: Tensor, rejected: Tensor, count: int) -> dict[str, Tensor]:
        """TRL's metrics of the rewards of chosen and rejected texts, f32 `[N]` each."""
        chosen, rejected = chosen.detach(), rejected.detach()
        return {
            "rewards/chosen": chosen.sum() / count,
            "rewards/rejected": rejected.sum() / count,
            "rewards/margins": (chosen - rejected).sum() / count,
            "rewards/accuracies": (chosen > rejected).sum() / count,
        }


class PreferenceLoss(_PairLoss):
    """Bradley-Terry loss of the chosen text over the rejected one, mean over pairs."""

    def load(self, folder: str) -> Any:
        return scalar.load_scalar(folder)

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        texts = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        scores = scalar.sequence_scores(model, *pad(texts, device))
        chosen, rejected = scores[: len(rows)], scores[len(rows) :]
        return {"loss": bradley_terry(chosen, rejected, num_pairs=count)} | self.reward_shares(chosen, rejected, count)


@dataclass(frozen=True)
class DirectPreferenceLoss(_PairLoss):
    """DPO (Rafailov et al. 2023) or IPO (Azar et al. 2023): the policy itself learns which completion
    people prefer, against a frozen reference whose log-probs come with the rows.

    A reward is beta times the log-ratio of policy and reference.
    """

    form: Literal["dpo", "ipo"]
    beta: float

    def load(self, folder: str) -> Any:
        return causal_lm.load_causal_lm(folder)

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        chosen, rejected = pair_logprobs(model, rows, device)
        ref_chosen, ref_rejected = (
            torch.tensor([row[name] for row in rows], dtype=torch.float32, device=device)
            for name in ("ref_chosen", "ref_rejected")
        )
        loss = dpo if self.form == "dpo" else ipo
        rewards = self.beta * (chosen - ref_chosen), self.beta * (rejected - ref_rejected)
        return {
            "loss": loss(chosen, rejected, ref_chosen, ref_rejected, self.beta, num_pairs=count),
            "logps/chosen": chosen.detach().sum() / count,
            "logps/rejected": rejected.detach().sum() / count,
        } | self.reward_shares(*rewards, count)


def pair_padded_tokens(row: Row) -> int:
    """Tokens that a pair takes in a microbatch where it is the longest: both texts, padded alike."""
    return 2 * max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def pair_logprobs(model: Any, rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """(chosen, rejected) f32 `[N]` each: log-probabilities of the completions after their prompts, summed."""
    texts = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
    tokens, lengths = pad(texts, device)
    starts = torch.tensor([row["prompt_length"] for row in rows] * 2, dtype=torch.long, device=device)
    column = torch.arange(tokens.shape[1], device=device)
    mask = (column >= starts[:, None]) & (column < lengths[:, None])
    logprobs = token_logprobs(causal_logits(model, tokens, lengths), tokens)
    sums = torch.where(mask, logprobs, 0.0).sum(1)
    return sums[: len(rows)], sums[len(rows) :]


LOSSES: dict[str, Loss] = {
    "text": CausalLoss(),
    "prompt_completion": CausalLoss(),
    "preference": PreferenceLoss(),
}

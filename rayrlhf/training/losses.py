"""What a supervised stage learns: how its rows are measured, loaded and scored.

Every number a loss returns is this microbatch's share of the minibatch's: divided by the global
count of loss tokens (pairs), so that shares add up over microbatches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rayrlhf.algorithms.logprobs import chosen_logprobs
from rayrlhf.algorithms.preference_loss import bradley_terry, dpo, ipo, kto
from rayrlhf.models import causal_lm, scalar
from rayrlhf.models.forward import chosen_logits, packed_logits
from rayrlhf.training.flops import Text
from rayrlhf.training.microbatches import pad

Row = dict[str, Any]
Shares = Callable[[Any, Sequence[Row], torch.device], dict[str, Tensor]]
Evaluate = Callable[[Shares], dict[str, float]]


class Loss(Protocol):
    """A supervised objective."""

    @property
    def reference_columns(self) -> dict[str, str]:
        """Columns of token ids whose completions the frozen reference judges -> the columns its summed
        log-probs come in."""
        ...

    def load(self, folder: str) -> Any:
        """The model to train, from a Hugging Face folder."""
        ...

    def pass_tokens(self, row: Row, is_packed: bool) -> int:
        """Tokens that a pass computes for `row`; with padding (not `is_packed`), of one where it is the longest."""
        ...

    def texts(self, row: Row) -> list[Text]:
        """Those that `row` learns from."""
        ...

    def judged(self, row: Row) -> list[Text]:
        """Those of `row` that only go forward, before the minibatch is learnt."""
        ...

    def count(self, rows: Sequence[Row]) -> int:
        """What the loss of `rows` is divided by."""
        ...

    def prepared(self, rows: Sequence[Row], evaluate: Evaluate) -> Loss:
        """The loss of the minibatch `rows`, knowing what it needs to know of all of it.  `evaluate` sums
        the shares of a function over microbatches and ranks, without gradients."""
        ...

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        """Shares of `loss` (with gradients) and of metrics (without); `rows` may be empty."""
        ...

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        """Metrics of a validation from the summed shares."""
        ...


class RowByRow:
    """A loss whose rows know nothing of each other, without a reference."""

    reference_columns: dict[str, str] = {}

    def prepared(self, rows: Sequence[Row], evaluate: Evaluate) -> Any:
        return self

    def judged(self, row: Row) -> list[Text]:
        return []


class CausalLoss(RowByRow):
    """Mean cross-entropy of the next token over the tokens of `loss_mask`.

    A row with `lengths` is several texts, one after the other (`rayrlhf.data.packing`), none of which sees another.
    """

    def load(self, folder: str) -> Any:
        return causal_lm.load_causal_lm(folder)

    def pass_tokens(self, row: Row, is_packed: bool) -> int:
        return len(row["input_ids"])

    def texts(self, row: Row) -> list[Text]:
        ends = list(accumulate(row["lengths"] if "lengths" in row else [len(row["input_ids"])]))
        return [Text(end - start, sum(row["loss_mask"][start + 1 : end])) for start, end in pairwise([0, *ends])]

    def count(self, rows: Sequence[Row]) -> int:
        return sum(sum(row["loss_mask"][1:]) for row in rows)  # nothing predicts the first token

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        if rows and "lengths" in rows[0]:
            return {"loss": -_packed_logprobs(model, rows, device).sum() / count}
        tokens, lengths = pad([row["input_ids"] for row in rows], device)
        mask = pad([row["loss_mask"] for row in rows], device)[0].bool()
        mask[:, 0] = False
        return {"loss": -chosen_logprobs(chosen_logits(model, tokens, lengths, mask), tokens[mask]).sum() / count}

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        return {"eval/loss": shares["loss"]}


def _packed_logprobs(model: Any, rows: Sequence[Row], device: torch.device) -> Tensor:
    """Log-probabilities of the tokens of `loss_mask` of packed rows, f32 `[n]`; no mask has the first token of a text,
    which nothing predicts."""
    tokens = torch.tensor([token for row in rows for token in row["input_ids"]], device=device)
    mask = torch.tensor([counts for row in rows for counts in row["loss_mask"]], dtype=torch.bool, device=device)
    lengths = torch.tensor([length for row in rows for length in row["lengths"]], device=device)
    return chosen_logprobs(packed_logits(model, tokens, lengths, mask), tokens[mask])


class PairLoss(RowByRow):
    """What losses of chosen over rejected texts have in common."""

    def pass_tokens(self, row: Row, is_packed: bool) -> int:
        return num_tokens(self.texts(row)) if is_packed else 2 * max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def texts(self, row: Row) -> list[Text]:
        return [Text(len(row["chosen_ids"]), 0), Text(len(row["rejected_ids"]), 0)]

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


@dataclass(frozen=True)
class PreferenceLoss(PairLoss):
    """Bradley-Terry loss of the chosen text over the rejected one, mean over pairs.

    With `margin` above 0 rows have a `margin` each; the chosen text is to lead by `margin` times it.
    """

    margin: float = 0.0

    def load(self, folder: str) -> Any:
        return scalar.load_scalar(folder)

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        texts = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        scores = scalar.sequence_scores(model, *pad(texts, device))
        chosen, rejected = scores[: len(rows)], scores[len(rows) :]
        lead = self.margin * numbers(rows, "margin", device) if self.margin else None
        loss = bradley_terry(chosen, rejected, lead, num_pairs=count)
        return {"loss": loss} | self.reward_shares(chosen, rejected, count)


@dataclass(frozen=True)
class DirectPreferenceLoss(PairLoss):
    """DPO (Rafailov et al. 2023) or IPO (Azar et al. 2023): the policy itself learns which completion
    people prefer, against a frozen reference whose log-probs come with the rows.

    A reward is beta times the log-ratio of policy and reference.
    """

    form: Literal["dpo", "ipo"]
    beta: float
    reference_columns = {"chosen_ids": "ref_chosen", "rejected_ids": "ref_rejected"}

    def load(self, folder: str) -> Any:
        return causal_lm.load_causal_lm(folder)

    def texts(self, row: Row) -> list[Text]:
        return [_completed(row[name], row["prompt_length"]) for name in self.reference_columns]

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        texts = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        sums = completion_logprobs(model, texts, [row["prompt_length"] for row in rows] * 2, device)
        chosen, rejected = sums[: len(rows)], sums[len(rows) :]
        ref_chosen, ref_rejected = (numbers(rows, name, device) for name in ("ref_chosen", "ref_rejected"))
        loss = dpo if self.form == "dpo" else ipo
        rewards = self.beta * (chosen - ref_chosen), self.beta * (rejected - ref_rejected)
        return {
            "loss": loss(chosen, rejected, ref_chosen, ref_rejected, self.beta, num_pairs=count),
            "logps/chosen": chosen.detach().sum() / count,
            "logps/rejected": rejected.detach().sum() / count,
        } | self.reward_shares(*rewards, count)


@dataclass(frozen=True)
class KTOLoss:
    """KTO (Ethayarajh et al. 2024): the policy learns from single completions labelled good or bad.

    The reference's log-probs come with the rows, of the completion (`ref_logprob`) and of another row's
    (`kl_ids`, `ref_kl`; see `mismatched`).  `kl` is the mean log-ratio of the latter over the whole
    minibatch: an estimate of KL(policy || reference) in nats a sequence.
    """

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kl: float = 0.0  # set by `prepared`, as is
    num_desirable: int = 0  # in the minibatch
    reference_columns = {"input_ids": "ref_logprob", "kl_ids": "ref_kl"}

    def load(self, folder: str) -> Any:
        return causal_lm.load_causal_lm(folder)

    def pass_tokens(self, row: Row, is_packed: bool) -> int:
        return max(len(row["input_ids"]), len(row["kl_ids"]))

    def texts(self, row: Row) -> list[Text]:
        return [_completed(row["input_ids"], row["prompt_length"])]

    def judged(self, row: Row) -> list[Text]:
        return [_completed(row["kl_ids"], row["prompt_length"])]

    def count(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def prepared(self, rows: Sequence[Row], evaluate: Evaluate) -> KTOLoss:
        def kl_shares(model: Any, part: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
            starts = [row["prompt_length"] for row in part]
            logprobs = completion_logprobs(model, [row["kl_ids"] for row in part], starts, device)
            return {"kl": (logprobs - numbers(part, "ref_kl", device)).sum() / len(rows)}

        return replace(self, kl=evaluate(kl_shares)["kl"], num_desirable=sum(row["label"] for row in rows))

    def shares(self, model: Any, rows: Sequence[Row], count: int, device: torch.device) -> dict[str, Tensor]:
        starts = [row["prompt_length"] for row in rows]
        logprobs = completion_logprobs(model, [row["input_ids"] for row in rows], starts, device)
        ref = numbers(rows, "ref_logprob", device)
        good = torch.tensor([row["label"] for row in rows], dtype=torch.bool, device=device)
        loss = kto(
            logprobs[good],
            logprobs[~good],
            ref[good],
            ref[~good],
            self.kl,
            self.beta,
            self.desirable_weight,
            self.undesirable_weight,
            num_examples=count,
        )
        rewards = self.beta * (logprobs.detach() - ref)
        shares = {"loss": loss, "objective/kl": rewards.new_tensor(self.kl) * len(rows) / count}
        if self.num_desirable:
            shares["rewards/chosen"] = rewards[good].sum() / self.num_desirable
        if self.num_desirable < count:
            shares["rewards/rejected"] = rewards[~good].sum() / (count - self.num_desirable)
        if 0 < self.num_desirable < count:
            shares["rewards/margins"] = shares["rewards/chosen"] - shares["rewards/rejected"]
        return shares

    def eval_metrics(self, shares: dict[str, float]) -> dict[str, float]:
        margin = {"eval/margin": shares["rewards/margins"]} if "rewards/margins" in shares else {}
        return {"eval/loss": shares["loss"]} | margin


def num_tokens(texts: Sequence[Text]) -> int:
    return sum(text.tokens for text in texts)


def _completed(ids: Sequence[int], start: int) -> Text:
    """A text whose tokens from `start` on are predicted."""
    return Text(len(ids), len(ids) - max(start, 1))


def completion_logprobs(
    model: Any, texts: Sequence[Sequence[int]], starts: Sequence[int], device: torch.device
) -> Tensor:
    """Log-probabilities of the tokens of each text from its start on, summed, f32 `[N]`, in nats."""
    tokens, lengths = pad(texts, device)
    column = torch.arange(tokens.shape[1], device=device)
    begin = torch.tensor(starts, dtype=torch.long, device=device)
    mask = (column >= begin[:, None].clamp(min=1)) & (column < lengths[:, None])  # nothing predicts the first token
    logprobs = chosen_logprobs(chosen_logits(model, tokens, lengths, mask), tokens[mask])
    return logprobs.new_zeros(len(tokens)).index_add(0, mask.nonzero()[:, 0], logprobs)


def numbers(rows: Sequence[Row], name: str, device: torch.device) -> Tensor:
    """A column of numbers, f32 `[N]`."""
    return torch.tensor([row[name] for row in rows], dtype=torch.float32, device=device)


LOSSES: dict[str, Loss] = {
    "text": CausalLoss(),
    "prompt_completion": CausalLoss(),
    "preference": PreferenceLoss(),
}

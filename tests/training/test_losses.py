"""The supervised losses: shares of a minibatch, by hand and against transformers' own loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayrlhf.training.losses import LOSSES, DirectPreferenceLoss, KTOLoss, PreferenceLoss, num_tokens
from rayrlhf.training.reward_losses import BinaryLoss, RankingLoss, RegressionLoss
from rayrlhf.training.supervised import _Progress

CPU = torch.device("cpu")
TEXTS: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7, 8, 9], "loss_mask": [False, False, True, True, True]},
    {"input_ids": [40, 41, 42], "loss_mask": [True, True, False]},
]
PAIRS: list[dict[str, Any]] = [
    {"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6]},
    {"chosen_ids": [40, 41], "rejected_ids": [42, 43, 44]},
    {"chosen_ids": [7], "rejected_ids": [8]},
]


def test_causal_loss_is_transformers_mean_over_loss_tokens(tiny_model: Callable[[str], str]) -> None:
    loss = LOSSES["prompt_completion"]
    model = loss.load(tiny_model("llama")).eval()
    assert loss.count(TEXTS) == 4  # nothing predicts a row's first token
    assert [loss.pass_tokens(row, is_packed=False) for row in TEXTS] == [5, 3]
    assert [loss.texts(row) for row in TEXTS] == [[(5, 3)], [(3, 1)]], "tokens and the predicted ones of them"
    packed = {"input_ids": [5, 6, 7, 8, 9, 10], "loss_mask": [1, 1, 0, 0, 1, 1], "lengths": [2, 4]}
    assert loss.texts(packed) == [(2, 1), (4, 2)]
    labels = torch.tensor([[-100, -100, 7, 8, 9], [-100, 41, -100, -100, -100]])
    tokens = torch.tensor([[5, 6, 7, 8, 9], [40, 41, 42, 0, 0]])
    with torch.no_grad():
        expected = float(model(input_ids=tokens, labels=labels).loss)
        whole = float(loss.shares(model, TEXTS, 4, CPU)["loss"])
        parts = [float(loss.shares(model, rows, 4, CPU)["loss"]) for rows in (TEXTS[:1], TEXTS[1:], [])]
    assert whole == pytest.approx(expected, abs=1e-5)
    assert sum(parts) == pytest.approx(expected, abs=1e-5) and parts[2] == 0.0


class Scores(torch.nn.Module):
    """A model whose score of a sequence is its last token."""

    base_model_prefix = "base"

    def base(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return type("Output", (), {"last_hidden_state": input_ids[..., None].float()})

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_preference_loss_by_hand() -> None:
    loss = LOSSES["preference"]
    assert loss.count(PAIRS) == 3
    assert [loss.pass_tokens(row, is_packed=False) for row in PAIRS] == [8, 6, 2]
    assert [loss.pass_tokens(row, is_packed=True) for row in PAIRS] == [6, 5, 2]
    assert [num_tokens(loss.texts(row)) for row in PAIRS] == [6, 5, 2]
    # scores 8 over 6, 41 over 44, 7 over 8
    shares = {name: float(value) for name, value in loss.shares(Scores(), PAIRS, 3, CPU).items()}
    expected = sum(math.log1p(math.exp(-margin)) for margin in (2, -3, -1)) / 3
    assert shares["loss"] == pytest.approx(expected, abs=1e-6)
    assert shares["rewards/chosen"] == pytest.approx((8 + 41 + 7) / 3)
    assert shares["rewards/rejected"] == pytest.approx((6 + 44 + 8) / 3)
    assert shares["rewards/margins"] == pytest.approx(-2 / 3)
    assert shares["rewards/accuracies"] == pytest.approx(1 / 3)
    assert loss.eval_metrics(shares)["eval/accuracy"] == pytest.approx(1 / 3)


def test_margins_lower_the_differences_by_hand() -> None:
    # differences 2, -3, -1 less half of the margins 3, 0 and 1
    rows = [row | {"margin": margin} for row, margin in zip(PAIRS, (3.0, 0.0, 1.0), strict=True)]
    shares = PreferenceLoss(margin=0.5).shares(Scores(), rows, 3, CPU)
    expected = sum(math.log1p(math.exp(-lead)) for lead in (0.5, -3, -1.5)) / 3
    assert float(shares["loss"]) == pytest.approx(expected, abs=1e-6)
    assert float(shares["rewards/margins"]) == pytest.approx(-2 / 3), "scores are told as they are"


RANKINGS: list[dict[str, Any]] = [
    {"ranked_ids": [[5, 9], [7], [8, 8, 8]]},  # scores 9, 7, 8
    {"ranked_ids": [[40, 3], [41, 4]]},  # 3, 4
    {"ranked_ids": [[5, 6], [5], [4], [3, 2]]},  # 6, 5, 4, 2
]


def test_ranking_loss_by_hand() -> None:
    loss = RankingLoss()
    assert loss.count(RANKINGS) == 3
    assert [loss.pass_tokens(row, is_packed=False) for row in RANKINGS] == [9, 4, 8], (
        "all texts of a row in one forward pass"
    )
    assert [num_tokens(loss.texts(row)) for row in RANKINGS] == [6, 4, 6]
    shares = {name: float(value) for name, value in loss.shares(Scores(), RANKINGS, 3, CPU).items()}
    leads = [(2, 1, -1), (-1,), (1, 2, 4, 1, 3, 2)]  # of each prompt's pairs
    means = [sum(math.log1p(math.exp(-lead)) for lead in pairs) / len(pairs) for pairs in leads]
    assert shares["loss"] == pytest.approx(sum(means) / 3, abs=1e-6)
    assert shares["rewards/accuracies"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert shares["rewards/margins"] == pytest.approx((2 / 3 - 1 + 13 / 6) / 3)
    assert shares["rewards/chosen"] == pytest.approx((25 / 3 + 3 + (6 * 3 + 5 * 2 + 4) / 6) / 3)
    assert loss.eval_metrics(shares)["eval/margin"] == shares["rewards/margins"]


def test_a_ranking_of_two_is_a_pair() -> None:
    rankings = [{"ranked_ids": [row["chosen_ids"], row["rejected_ids"]]} for row in PAIRS]
    pairs, ranked = PreferenceLoss().shares(Scores(), PAIRS, 3, CPU), RankingLoss().shares(Scores(), rankings, 3, CPU)
    assert pairs.keys() == ranked.keys()
    for name, value in pairs.items():
        assert float(ranked[name]) == pytest.approx(float(value), abs=1e-5), name


def test_regression_and_binary_loss_by_hand() -> None:
    texts = [{"input_ids": [5, 6]}, {"input_ids": [3]}, {"input_ids": [9, 9, 2]}]  # scores 6, 3, 2
    rated = [row | {"score": score} for row, score in zip(texts, (4.0, 3.5, 2.0), strict=True)]
    shares = {name: float(value) for name, value in RegressionLoss().shares(Scores(), rated, 3, CPU).items()}
    assert shares["loss"] == pytest.approx((4 + 0.25 + 0) / 3)
    assert RegressionLoss().eval_metrics(shares) == {"eval/loss": shares["loss"], "eval/mae": pytest.approx(2.5 / 3)}
    assert [RegressionLoss().pass_tokens(row, is_packed=False) for row in rated] == [2, 1, 3]

    labelled = [row | {"label": label} for row, label in zip(texts, (True, False, True), strict=True)]
    shares = {name: float(value) for name, value in BinaryLoss().shares(Scores(), labelled, 3, CPU).items()}
    assert shares["loss"] == pytest.approx(sum(math.log1p(math.exp(-s)) for s in (6, -3, 2)) / 3, abs=1e-6)
    assert BinaryLoss().eval_metrics(shares)["eval/accuracy"] == pytest.approx(2 / 3)


RATED = [{"input_ids": [5, 6, 7], "score": 1.5}, {"input_ids": [40], "score": -1.0}, {"input_ids": [7, 8], "score": 0}]
REWARD_LOSSES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "pairwise": (PreferenceLoss(), PAIRS),
    "margin": (PreferenceLoss(0.5), [row | {"margin": 2.0} for row in PAIRS]),
    "ranking": (RankingLoss(), RANKINGS),
    "regression": (RegressionLoss(), RATED),
    "binary": (BinaryLoss(), [row | {"label": n < 2} for n, row in enumerate(RATED)]),
}


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_shares_of_a_reward_model_add_up_and_may_be_empty(name: str, tiny_model: Callable[[str], str]) -> None:
    loss, rows = REWARD_LOSSES[name]
    model = loss.load(tiny_model("qwen3")).eval()
    with torch.no_grad():
        whole = loss.shares(model, rows, 3, CPU)
        parts = [loss.shares(model, some, 3, CPU) for some in (rows[:1], rows[1:], [])]
    for key, value in whole.items():
        assert sum(float(part[key]) for part in parts) == pytest.approx(float(value), abs=1e-5), key
    empty = loss.shares(model, [], 3, CPU)
    empty["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_early_stopping_keeps_the_best_and_counts_patience() -> None:
    from rayrlhf.errors import ConfigError
    from rayrlhf.training.config import EarlyStopping

    best, most = _Progress(), EarlyStopping(metric="eval/accuracy", goal="max", patience=2)
    seen = []
    for best.step, value in enumerate((0.5, 0.7, 0.7, 0.8, 0.6, 0.79), start=1):
        seen.append((best.is_best({"eval/accuracy": value}, most), best.num_worse))
    assert seen == [(True, 0), (True, 0), (False, 1), (True, 0), (False, 1), (False, 2)]
    assert (best.best, best.best_step) == (0.8, 4)
    least, fewest = _Progress(), EarlyStopping(metric="eval/loss", goal="min", patience=1)
    assert [least.is_best({"eval/loss": value}, fewest) for value in (3.0, 2.0, 2.5)] == [True, True, False]
    with pytest.raises(ConfigError, match=r"'eval/accuracy', which no validation gives; there are eval/loss"):
        best.is_best({"eval/loss": 1.0, "loss/train": 1.0}, most)


REFERENCE = [{"ref_chosen": -9.0, "ref_rejected": -7.0}, {"ref_chosen": -4.0, "ref_rejected": -11.0}]
DPO_PAIRS: list[dict[str, Any]] = [
    {"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6, 9], "prompt_length": 2, **REFERENCE[0]},
    {"chosen_ids": [40, 41], "rejected_ids": [40, 43, 44], "prompt_length": 1, **REFERENCE[1]},
]


@pytest.mark.parametrize("form", ["dpo", "ipo"])
def test_direct_preference_loss_against_a_slow_loop(form: Any, tiny_model: Callable[[str], str]) -> None:
    loss = DirectPreferenceLoss(form, beta=0.3)
    model = loss.load(tiny_model("llama")).eval()
    assert [loss.pass_tokens(row, is_packed=False) for row in DPO_PAIRS] == [8, 6] and loss.count(DPO_PAIRS) == 2
    assert [loss.texts(row) for row in DPO_PAIRS] == [[(4, 2), (3, 1)], [(2, 1), (3, 2)]]

    total, margins = torch.zeros(()), []
    for row in DPO_PAIRS:
        start = row["prompt_length"]
        chosen, rejected = (slow_logprob(model, row[name], start) for name in ("chosen_ids", "rejected_ids"))
        h = (chosen - row["ref_chosen"]) - (rejected - row["ref_rejected"])
        margins.append(0.3 * float(h.detach()))
        total = total + (-torch.nn.functional.logsigmoid(0.3 * h) if form == "dpo" else (h - 1 / 0.6) ** 2) / 2
    total.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    parts = [loss.shares(model, rows, 2, CPU) for rows in (DPO_PAIRS[:1], DPO_PAIRS[1:], [])]
    for part in parts:
        part["loss"].backward()
    assert sum(float(part["loss"].detach()) for part in parts) == pytest.approx(float(total.detach()), abs=1e-5)
    assert sum(float(part["rewards/margins"]) for part in parts) == pytest.approx(sum(margins) / 2, abs=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4)


def slow_logprob(model: Any, ids: list[int], start: int) -> torch.Tensor:
    table = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([table[t - 1, ids[t]] for t in range(start, len(ids))]).sum()


LABELLED: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7, 8], "prompt_length": 2, "label": True, "ref_logprob": -9.0},
    {"input_ids": [40, 41], "prompt_length": 1, "label": False, "ref_logprob": -5.0},
    {"input_ids": [40, 43, 44], "prompt_length": 1, "label": True, "ref_logprob": -14.0},
]
MISMATCHED = [
    {"kl_ids": [5, 6, 41], "ref_kl": -30.0},
    {"kl_ids": [40, 43, 44, 45, 46], "ref_kl": -50.0},
    {"kl_ids": [40, 7], "ref_kl": -20.0},
]


def test_kto_loss_against_a_slow_loop(tiny_model: Callable[[str], str]) -> None:
    loss, rows = KTOLoss(0.3, 1.5, 0.5), [a | b for a, b in zip(LABELLED, MISMATCHED, strict=True)]
    model = loss.load(tiny_model("llama")).eval()
    assert [loss.pass_tokens(row, is_packed=False) for row in rows] == [4, 5, 3] and loss.count(rows) == 3
    assert [loss.texts(row) + loss.judged(row) for row in rows] == [
        [(4, 2), (3, 1)],
        [(2, 1), (5, 4)],
        [(3, 2), (2, 1)],
    ]
    with torch.no_grad():
        gaps = [slow_logprob(model, row["kl_ids"], row["prompt_length"]) - row["ref_kl"] for row in rows]
    kl = float(sum(gaps)) / 3
    assert kl > 1, "or the reference point would have no effect below"
    total = torch.zeros(())
    for row in rows:
        ratio = slow_logprob(model, row["input_ids"], row["prompt_length"]) - row["ref_logprob"]
        sign, weight = (1, 1.5) if row["label"] else (-1, 0.5)
        total = total + weight * (1 - torch.sigmoid(0.3 * sign * (ratio - kl))) / 3
    total.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    splits = (rows[:1], rows[1:], [])

    def evaluate(shares: Any) -> dict[str, float]:
        with torch.no_grad():
            found = [shares(model, some, CPU) for some in splits]
        return {name: sum(float(part[name]) for part in found) for name in found[0]}

    ready = loss.prepared(rows, evaluate)
    parts = [ready.shares(model, some, 3, CPU) for some in splits]
    for part in parts:
        part["loss"].backward()
    summed = {name: sum(float(part[name].detach()) for part in parts) for name in parts[0]}
    assert summed["loss"] == pytest.approx(float(total.detach()), abs=1e-5)
    assert summed["objective/kl"] == pytest.approx(kl, abs=1e-4)
    assert summed["rewards/margins"] == pytest.approx(summed["rewards/chosen"] - summed["rewards/rejected"], abs=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-4)
    alone = loss.prepared(rows[:1], evaluate).shares(model, rows[:1], 1, CPU)
    assert "rewards/rejected" not in alone and "rewards/margins" not in alone, "there is none to speak of"

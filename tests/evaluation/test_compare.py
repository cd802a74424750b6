"""Two sides compared: every number by hand from two prompts."""

import math

import pytest
import torch

from rayrlhf.batches import Rollouts
from rayrlhf.evaluation.compare import Side, compare, sample_rows

MASK = torch.tensor([[False, True, True], [False, True, False]])


def side(sampled, ref, base, responses, scores, gold) -> Side:
    """Two rows: one prompt token each, responses of two and of one token."""
    rollouts = Rollouts(
        tokens=torch.tensor([[1, 5, 2], [1, 6, 0]]),
        lengths=torch.tensor([3, 2]),
        response_mask=MASK,
        sampled_logprobs=torch.tensor(sampled),
        finished=torch.tensor([True, False]),
        prompt_index=torch.tensor([0, 1]),
        policy_version=torch.tensor([0, 0]),
    )
    return Side(rollouts, ["p", "q"], responses, scores, torch.tensor(ref), torch.tensor(base), gold)


def test_every_number() -> None:
    log = math.log
    half = log(0.5)
    policy = side(
        # what stands outside the mask must not count, nan included
        sampled=[[0.0, -1.0, -2.0], [0.0, -1.5, 0.0]],
        ref=[[math.nan, -2.0, -2.5], [math.nan, -1.0, math.nan]],
        base=[[math.nan, half, half], [math.nan, log(0.25), math.nan]],
        responses=["good good film good film", "fine"],
        scores=[2.0, 1.0],
        gold=[0.5, 0.0],
    )
    baseline = side(
        sampled=[[0.0, -1.0, -1.0], [0.0, -1.0, 0.0]],
        ref=[[0.0, -1.0, -1.0], [0.0, -1.0, 0.0]],
        base=[[0.0, half, half], [0.0, half, 0.0]],
        responses=["a dull zork", ""],
        scores=[1.0, 1.0],
        gold=[-0.5, 0.04],
    )
    metrics = compare(policy, baseline, {"good", "film", "a", "dull"}, seed=0)
    expected = {
        "eval/policy/score": 1.5,
        "eval/policy/kl": ((-1.0 + 2.0 - 2.0 + 2.5) + (-1.5 + 1.0)) / 2,
        "eval/policy/length": 1.5,
        "eval/policy/finished_share": 0.5,
        "eval/policy/distinct_2": 3 / 4,  # gg gf fg gf: 3 of 4
        "eval/policy/repetition_2": (1 / 4 + 0) / 2,
        "eval/policy/perplexity": 16 ** (1 / 3),
        "eval/policy/gold": 0.25,
        "eval/policy/gold_positive_share": 0.5,
        "eval/policy/known_word_share": 5 / 6,
        "eval/baseline/score": 1.0,
        "eval/baseline/kl": 0.0,
        "eval/baseline/length": 1.5,
        "eval/baseline/finished_share": 0.5,
        "eval/baseline/distinct_2": 1.0,
        "eval/baseline/repetition_2": 0.0,
        "eval/baseline/perplexity": 2.0,
        "eval/baseline/gold": -0.23,
        "eval/baseline/gold_positive_share": 0.0,
        "eval/baseline/known_word_share": 2 / 3,
        "eval/win_rate_reward": 0.75,  # a win and a tie
        "eval/win_rate_gold": 0.5,  # a win and a loss
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    intervals = {f"eval/win_rate_{judge}_{end}" for judge in ("reward", "gold") for end in ("low", "high")}
    assert set(metrics) == set(expected) | intervals

    assert sample_rows(policy, baseline)[0] == {
        "prompt": "p",
        "baseline": "a dull zork",
        "baseline_score": 1.0,
        "baseline_gold": -0.5,
        "policy": "good good film good film",
        "policy_score": 2.0,
        "policy_gold": 0.5,
    }


def test_without_gold_and_words_nothing_is_said_of_them() -> None:
    zero = [[0.0] * 3] * 2
    one = side(zero, zero, zero, ["a b", "c"], [0.0, 1.0], None)
    metrics = compare(one, one, None, seed=0)
    assert not [name for name in metrics if "gold" in name or "known" in name]
    assert metrics["eval/win_rate_reward"] == 0.5

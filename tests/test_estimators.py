"""Each estimator on a batch worked out by hand, and what configurations are refused."""

import asyncio

import pytest
import torch
from pydantic import ValidationError

from rayrlhf import estimators
from rayrlhf.algorithms.masking import masked_whiten
from rayrlhf.batches import Experience, Rollouts, Scores, Values
from rayrlhf.ppo_config import AlgorithmConfig, KLConfig, TruncationConfig

# four rows of one prompt token; responses of 1, 2, 2 and 1 tokens; two groups of two
MASK = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 1, 1], [0, 1, 0]], dtype=torch.bool)
LENGTHS = torch.tensor([2, 3, 3, 2])
SCORES = torch.tensor([1.0, 3.0, 0.0, 4.0])
KL = torch.tensor([[0, 0.5, 0], [0, 0.5, 1.0], [0, 0.0, -1.0], [0, 2.0, 0]])


def experience(finished: tuple[bool, ...] = (True,) * 4) -> Experience:
    rollouts = Rollouts(
        tokens=torch.ones(4, 3, dtype=torch.int64),
        lengths=LENGTHS,
        response_mask=MASK,
        sampled_logprobs=torch.zeros(4, 3),
        finished=torch.tensor(finished),
        prompt_index=torch.arange(4),
        policy_version=torch.zeros(4, dtype=torch.int64),
    )
    values = Values(torch.where(MASK, 0.5, 0.0), torch.full((4,), 7.0))
    return Experience(rollouts, KL, torch.zeros(4, 3), Scores(SCORES, SCORES[:, None], ("x",)), values)


def estimate(beta: float, finished: tuple[bool, ...] = (True,) * 4, **config) -> estimators.Estimate:
    return estimators.build(AlgorithmConfig(**config))(experience(finished), SCORES, beta)


def test_rloo_compares_scores_less_the_summed_kl():
    # less 0.1 * (0.5, 1.5, -1, 2): 0.95, 2.85, 0.1, 3.8; each less the other one of its group
    found = estimate(0.1, estimator="rloo", group_size=2)
    expected = torch.tensor([[0, -1.9, 0], [0, 1.9, 1.9], [0, -3.7, -3.7], [0, 3.7, 0]])
    assert torch.allclose(found.advantages, expected)
    assert not found.returns.any()


def test_grpo_and_dr_grpo_see_the_score_alone():
    # means 2 and 2; standard deviations 2^0.5 and 8^0.5
    found = estimate(0.0, estimator="grpo", group_size=2)
    unit = 2**-0.5
    assert torch.allclose(found.advantages[:, 1], torch.tensor([-unit, unit, -unit, unit]), atol=1e-3)
    found = estimate(0.0, estimator="dr_grpo", group_size=2)
    assert torch.allclose(found.advantages, torch.tensor([[0, -1.0, 0], [0, 1, 1], [0, -2, -2], [0, 2, 0]]))


def test_reinforce_pp_normalises_the_sum_of_what_follows():
    # rewards -0.1 * KL, the score on the last token; sums from each token on
    sums = torch.tensor([[0, 0.95, 0], [0, 2.85, 2.9], [0, 0.1, 0.1], [0, 3.8, 0]])
    found = estimate(0.1, estimator="reinforce_pp")
    assert torch.allclose(found.advantages, masked_whiten(sums, MASK), atol=1e-6)
    assert torch.allclose(estimate(0.1, estimator="reinforce_pp", whiten=False).advantages, sums, atol=1e-6)


def test_reinforce_pp_discounts():
    # row 1 of the two-token rows: -0.05 + 0.5 * (3 - 0.1)
    found = estimate(0.1, estimator="reinforce_pp", whiten=False, gamma=0.5)
    assert float(found.advantages[1, 1]) == pytest.approx(1.4)


def test_gae_with_lambda_one_is_the_return_less_the_value():
    found = estimate(0.1, estimator="gae", lam=1.0, whiten=False)
    sums = torch.tensor([[0, 0.95, 0], [0, 2.85, 2.9], [0, 0.1, 0.1], [0, 3.8, 0]])
    assert torch.allclose(found.returns, sums, atol=1e-6)
    assert torch.allclose(found.advantages, torch.where(MASK, sums - 0.5, 0.0), atol=1e-6)
    white = estimate(0.1, estimator="gae", lam=1.0)
    assert torch.allclose(white.advantages, masked_whiten(found.advantages, MASK), atol=1e-6)


def test_the_penalty_of_a_cut_response_enters_the_baseline():
    cut = (True, False, True, True)
    found = estimate(0.0, cut, estimator="rloo", group_size=2, truncation=TruncationConfig(penalty=2.5))
    assert found.advantages[:2, 1].tolist() == [0.5, -0.5]  # scores 1 and 3 - 2.5


def test_a_fixed_score_takes_the_place_of_a_cut_responses_own():
    cut = (True, False, True, True)
    found = estimate(
        0.0, cut, estimator="rloo", group_size=2, truncation=TruncationConfig(handling="replace", penalty=2.5)
    )
    assert found.ends[:2].tolist() == [1.0, -2.5] and found.advantages[:2, 1].tolist() == [3.5, -3.5]


@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
def test_a_penalty_at_the_token_is_the_last_tokens_alone(estimator):
    """Row 1 has two response tokens: its scores are compared as they are, and only its last token pays."""
    cut, penalty = (True, False, True, True), TruncationConfig(penalty=2.5, level="token")
    with_it = estimate(0.0, cut, estimator=estimator, group_size=2, truncation=penalty)
    without = estimate(0.0, cut, estimator=estimator, group_size=2)
    assert with_it.ends.tolist() == without.ends.tolist()
    change = with_it.advantages - without.advantages
    assert change[1].tolist() == [0.0, 0.0, -2.5] and change[[0, 2, 3]].abs().sum() == 0


def test_the_kind_of_kl_in_the_reward():
    found = estimate(1.0, estimator="reinforce_pp", kl=KLConfig(kind="k2"), whiten=False)
    assert float(found.rewards[3, 1]) == pytest.approx(4.0 - 2.0)  # 2^2 / 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"estimator": "grpo"}, "group_size is 1, set 2 or more"),
        ({"estimator": "grpo", "group_size": 2, "kl": {"placement": "reward"}}, "set kl.placement=loss"),
        ({"kl": {"placement": "loss", "kind": "k1"}}, "k1 in the loss"),
        ({"estimator": "dr_grpo", "group_size": 2, "kl": {"kind": "k1"}}, "k1 has no gradient"),
        ({"estimator": "rloo", "group_size": 2, "truncation": {"handling": "bootstrap"}}, "needs a critic"),
        ({"estimator": "reinforce_pp", "lam": 0.9}, "lam=0.9 has no effect"),
        ({"estimator": "rloo", "group_size": 2, "gamma": 0.9}, "gamma and whiten have no effect"),
        ({"truncation": {"penalty": 1, "level": "token"}}, "with estimator=gae the score stands on the last token"),
        ({"truncation": {"level": "token"}}, "handling=penalty and penalty=0"),
        ({"truncation": {"handling": "replace", "level": "token", "penalty": 1}}, "handling=replace and penalty=1"),
        ({"kl": {"horizon": 300}}, "kl.horizon=300 has no effect without kl.target"),
        ({"kl": {"beta": 0, "target": 6}}, "kl.target=6 multiplies kl.beta, which is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        AlgorithmConfig.model_validate(config)


@pytest.mark.parametrize(
    ("config", "in_loss", "kind"),
    [
        ({}, False, "k1"),
        ({"kl": {"placement": "loss"}}, True, "k3"),
        ({"estimator": "grpo", "group_size": 2}, True, "k3"),
        ({"estimator": "rloo", "group_size": 2}, False, "k1"),
        ({"estimator": "rloo", "group_size": 2, "kl": {"placement": "loss", "kind": "k2"}}, True, "k2"),
    ],
)
def test_where_the_kl_goes_by_itself(config, in_loss, kind):
    found = AlgorithmConfig.model_validate(config)
    assert (found.kl_in_loss, found.kl_kind) == (in_loss, kind)


def test_without_a_critic_nothing_is_asked_of_one():
    critic, rollouts = estimators.NoCritic(), experience().rollouts
    values = asyncio.run(critic.values(rollouts))
    assert not values.values.any() and not values.bootstrap.any()

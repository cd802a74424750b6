import math

import pytest
import torch

from rayrlhf.algorithms.loss_weights import importance_weights, token_weights
from rayrlhf.algorithms.ppo_loss import policy_loss

# lengths 2 and 3: 5 tokens, 2 sequences
MASK = torch.tensor([[False, True, True, False], [False, True, True, True]])
NAN = float("nan")


def test_each_normaliser_by_hand():
    terms = torch.tensor([[NAN, 1.0, 3.0, NAN], [NAN, 6.0, 0.0, 3.0]])  # per-sequence means 2 and 3, sum 13

    def mean(normaliser, constant=None):
        weights = token_weights(MASK, normaliser, 5, 2, constant)
        return float((weights * torch.where(MASK, terms, 0.0)).sum() / 5)

    assert mean("tokens") == pytest.approx(13 / 5)
    assert mean("sequence_mean") == pytest.approx((2 + 3) / 2)
    assert mean("constant", 10.0) == pytest.approx(13 / (2 * 10))


@pytest.mark.parametrize("normaliser", ["tokens", "sequence_mean", "constant"])
def test_microbatches_add_up_to_the_minibatch(normaliser):
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(2, 4, generator=generator) for _ in range(3))

    def loss(rows):
        weights = token_weights(MASK[rows], normaliser, 5, 2, 7.0)
        return policy_loss(new[rows], old[rows], advantages[rows], MASK[rows], 0.2, 0.2, 5, weights=weights)[0]

    assert float(loss([0]) + loss([1])) == pytest.approx(float(loss([0, 1])))


def test_weights_scale_the_gradient_of_each_token():
    logprobs = torch.zeros(2, 4, requires_grad=True)
    weights = token_weights(MASK, "sequence_mean", 5, 2)
    loss, stats = policy_loss(logprobs, torch.zeros(2, 4), torch.ones(2, 4), MASK, 0.2, 0.2, 5, weights=weights)
    loss.backward()
    assert logprobs.grad is not None  # at ratio 1 the gradient is -A * weight / num_tokens
    assert torch.allclose(logprobs.grad, torch.tensor([[0, -1 / 4, -1 / 4, 0], [0, -1 / 6, -1 / 6, -1 / 6]]))
    assert float(loss.detach()) == pytest.approx(-1.0) and float(stats["policy/ratio"]) == pytest.approx(1.0)


def test_a_constant_is_needed_where_it_divides():
    with pytest.raises(ValueError, match="the constant, which is None"):
        token_weights(MASK, "constant", 5, 2)


def test_importance_weights_by_hand():
    trainer = torch.tensor([[NAN, -1.0, -1.0, NAN], [NAN, -1.0, -1.0, -1.0]])
    sampled = torch.tensor([[NAN, -1.0, -2.0, NAN], [NAN, -0.5, -9.0, -1.0]])
    weights = importance_weights(trainer, sampled, MASK, cap=2.0)
    # e is above the cap, e^-0.5 is below it, e^8 is cut
    expected = [[0, 1, 2.0, 0], [0, math.exp(-0.5), 2.0, 1]]
    assert torch.allclose(weights, torch.tensor(expected))


def test_importance_weights_refuse_a_cap_below_one():
    with pytest.raises(ValueError, match="0.5"):
        importance_weights(torch.zeros(2, 4), torch.zeros(2, 4), MASK, cap=0.5)

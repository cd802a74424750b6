import math

import pytest
import torch

from rayrlhf.algorithms.preference_loss import binary, bradley_terry, dpo, ipo, kto, ranking, regression


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


CHOSEN, REJECTED = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
# log-ratios: chosen 1 and -2, rejected -1 and 1, so h = 2 and -3
POLICY = {"policy_chosen": torch.tensor([-4.0, -9.0]), "policy_rejected": torch.tensor([-6.0, -5.0])}
REF = {"ref_chosen": torch.tensor([-5.0, -7.0]), "ref_rejected": torch.tensor([-5.0, -6.0])}
EMPTY = torch.zeros(0)


def test_bradley_terry_by_hand():
    # differences 1 and -1: log(1 + e^-1) = 0.3132617, log(1 + e) = 1.3132617
    assert bradley_terry(CHOSEN, REJECTED).item() == pytest.approx((0.3132617 + 1.3132617) / 2)
    assert bradley_terry(CHOSEN, CHOSEN).item() == pytest.approx(math.log(2))


def test_bradley_terry_margin_lowers_the_difference():
    expected = (-math.log(sigmoid(1 - 0.5)) - math.log(sigmoid(-1 - 2.0))) / 2
    assert bradley_terry(CHOSEN, REJECTED, margin=torch.tensor([0.5, 2.0])).item() == pytest.approx(expected)
    both = (-math.log(sigmoid(0.5)) - math.log(sigmoid(-1.5))) / 2
    assert bradley_terry(CHOSEN, REJECTED, margin=0.5).item() == pytest.approx(both)


def test_bradley_terry_is_finite_for_hopeless_scores():
    chosen = torch.tensor([-1e4], requires_grad=True)
    loss = bradley_terry(chosen, torch.tensor([1e4]))
    loss.backward()
    assert loss.item() == 2e4 and chosen.grad.item() == -1.0


def test_ranking_by_hand():
    # best first 3, 1, 2: differences 2, 1, -1
    expected = -(math.log(sigmoid(2)) + math.log(sigmoid(1)) + math.log(sigmoid(-1))) / 3
    assert ranking(torch.tensor([3.0, 1.0, 2.0])).item() == pytest.approx(expected)


def test_ranking_of_two_is_bradley_terry_and_of_many_the_mean_over_pairs(normal):
    scores = normal(0, 5)
    assert ranking(scores[:2]).item() == pytest.approx(bradley_terry(scores[:1], scores[1:2]).item())
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    assert len(pairs) == 10
    total = sum(-math.log(sigmoid((scores[i] - scores[j]).item())) for i, j in pairs)
    assert ranking(scores).item() == pytest.approx(total / 10)


def test_regression_by_hand():
    # errors 1 and -3
    scores = torch.tensor([2.0, 0.0], requires_grad=True)
    loss = regression(scores, torch.tensor([1.0, 3.0]))
    loss.backward()
    assert loss.item() == pytest.approx((1 + 9) / 2)
    assert scores.grad.tolist() == pytest.approx([2 * 1 / 2, 2 * -3 / 2])


def test_binary_by_hand():
    # a good text of score 2, a bad one of 1: -log sigmoid(2), -log sigmoid(-1)
    loss = binary(torch.tensor([2.0, 1.0]), torch.tensor([True, False]))
    assert loss.item() == pytest.approx((-math.log(sigmoid(2)) - math.log(sigmoid(-1))) / 2)
    hopeless = torch.tensor([1e4], requires_grad=True)
    loss = binary(hopeless, torch.tensor([False]))
    loss.backward()
    assert loss.item() == 1e4 and hopeless.grad.item() == 1.0


def test_dpo_by_hand():
    expected = -(math.log(sigmoid(0.5 * 2)) + math.log(sigmoid(0.5 * -3))) / 2
    assert dpo(**POLICY, **REF, beta=0.5).item() == pytest.approx(expected)


def test_ipo_by_hand():
    # 1 / (2 * 0.5) = 1: (2 - 1)^2 and (-3 - 1)^2
    assert ipo(**POLICY, **REF, beta=0.5).item() == pytest.approx((1 + 16) / 2)
    assert ipo(**POLICY, **REF, beta=0.25).item() == pytest.approx((0 + 25) / 2)


def test_dpo_gradient_by_hand():
    chosen = POLICY["policy_chosen"].clone().requires_grad_()
    dpo(chosen, POLICY["policy_rejected"], **REF, beta=0.5).backward()
    assert chosen.grad.tolist() == pytest.approx([-0.5 * sigmoid(-1) / 2, -0.5 * sigmoid(1.5) / 2])


def test_kto_by_hand_with_unequal_numbers():
    # chosen log-ratios 1 and -2, one rejected -1; kl 0.5, beta 0.5
    loss = kto(
        POLICY["policy_chosen"],
        POLICY["policy_rejected"][:1],
        REF["ref_chosen"],
        REF["ref_rejected"][:1],
        kl=torch.tensor(0.5),
        beta=0.5,
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    expected = 2 * (1 - sigmoid(0.25)) + 2 * (1 - sigmoid(-1.25)) + 3 * (1 - sigmoid(0.75))
    assert loss.item() == pytest.approx(expected / 3)


def test_kto_either_side_may_be_empty():
    chosen_only = kto(POLICY["policy_chosen"], EMPTY, REF["ref_chosen"], EMPTY, kl=0.0, beta=1.0)
    assert chosen_only.item() == pytest.approx((1 - sigmoid(1) + 1 - sigmoid(-2)) / 2)
    rejected_only = kto(EMPTY, POLICY["policy_rejected"], EMPTY, REF["ref_rejected"], kl=0.0, beta=1.0)
    assert rejected_only.item() == pytest.approx((1 - sigmoid(1) + 1 - sigmoid(-1)) / 2)
    with pytest.raises(ValueError, match="no examples"):
        kto(EMPTY, EMPTY, EMPTY, EMPTY, kl=0.0, beta=1.0)


def test_kto_kl_has_no_gradient_and_a_negative_one_counts_as_zero():
    kl = torch.tensor(0.5, requires_grad=True)
    chosen = POLICY["policy_chosen"].clone().requires_grad_()
    kto(chosen, POLICY["policy_rejected"], **REF, kl=kl, beta=1.0).backward()
    assert kl.grad is None and (chosen.grad != 0).all()
    at_zero = kto(**POLICY, **REF, kl=torch.tensor(0.0), beta=1.0)
    assert kto(**POLICY, **REF, kl=torch.tensor(-2.0), beta=1.0).item() == at_zero.item()
    with pytest.raises(ValueError, match="kl must be a scalar"):
        kto(**POLICY, **REF, kl=torch.zeros(2), beta=1.0)


LOSSES = {
    "bradley_terry": lambda a, b, c, d, n=None: bradley_terry(a, b, num_pairs=n),
    "bradley_terry margin": lambda a, b, c, d, n=None: bradley_terry(a, b, margin=d, num_pairs=n),
    "regression": lambda a, b, c, d, n=None: regression(a, b, n),
    "binary": lambda a, b, c, d, n=None: binary(a, b > 0, n),
    "dpo": lambda a, b, c, d, n=None: dpo(a, b, c, d, beta=0.3, num_pairs=n),
    "ipo": lambda a, b, c, d, n=None: ipo(a, b, c, d, beta=0.3, num_pairs=n),
    "kto": lambda a, b, c, d, n=None: kto(
        a, b, c, d, kl=0.2, beta=0.3, undesirable_weight=1.5, num_examples=None if n is None else 2 * n
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_microbatches_with_the_global_count_add_up(name, normal):
    loss_of, tensors = LOSSES[name], [normal(seed, 7) for seed in range(4)]
    whole, parts = (tensors[0].clone().requires_grad_() for _ in range(2))
    loss = loss_of(whole, *tensors[1:])
    loss.backward()
    total = 0.0
    for rows in (slice(0, 2), slice(2, 7), slice(0, 0)):  # the last: a filler without rows
        part = loss_of(parts[rows], *(x[rows] for x in tensors[1:]), 7)
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item())
    torch.testing.assert_close(parts.grad, whole.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_finite_differences(name, normal):
    inputs = [normal(seed, 3).requires_grad_() for seed in range(2)]
    rest = [normal(seed, 3) for seed in (2, 3)]
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name](a, b, *rest), inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_broadcast_are_refused(name):
    two, column = torch.zeros(2), torch.zeros(2, 1)
    with pytest.raises(ValueError, match="one number an example"):
        LOSSES[name](two, column, two, two)
    if name != "kto":
        with pytest.raises(ValueError, match="one number an example"):
            LOSSES[name](two, torch.zeros(3), two, torch.zeros(3))
        with pytest.raises(ValueError, match="no examples"):
            LOSSES[name](EMPTY, EMPTY, EMPTY, EMPTY)


def test_beta_and_ranking_arguments():
    for function in (dpo, ipo, lambda **k: kto(**k, kl=0.0)):
        with pytest.raises(ValueError, match="beta is 0"):
            function(**POLICY, **REF, beta=0)
    for shape in ((1,), (2, 2)):
        with pytest.raises(ValueError, match="K >= 2"):
            ranking(torch.zeros(shape))

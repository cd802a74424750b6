import json

import pytest
import torch

from rayrlhf.algorithms.kl_control import AdaptiveKL, FixedKL


@pytest.mark.parametrize(
    ("kl", "beta"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.101),  # error 0.1, times 100 / 1000
        (5.4, 0.099),
        (60.0, 0.102),  # error clipped at 0.2
        (-3.0, 0.098),  # a k1 estimate may be negative: error clipped at -0.2
    ],
)
def test_one_update_by_hand(kl, beta):
    control = AdaptiveKL(init=0.1, target=6.0, horizon=1000)
    control.update(kl, num_sequences=100)
    assert control.beta == pytest.approx(beta)


def test_updates_multiply():
    control = AdaptiveKL(0.2, 5.0, 10000)
    for kl in (10.0, torch.tensor(10.0), 0.0):
        control.update(kl, 500)
    assert control.beta == pytest.approx(0.2 * 1.01 * 1.01 * 0.99)


def test_state_survives_json_and_continues_alike():
    whole, first = AdaptiveKL(0.1, 6.0, 1000), AdaptiveKL(0.1, 6.0, 1000)
    for kl in (7.0, 9.0):
        whole.update(kl, 64)
    first.update(7.0, 64)
    second = AdaptiveKL(0.1, 6.0, 1000)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.update(9.0, 64)
    assert second.beta == whole.beta


@pytest.mark.parametrize("kl", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_kl_that_is_not_finite_raises_and_leaves_beta(kl):
    control = AdaptiveKL(0.1, 6.0, 1000)
    with pytest.raises(ValueError, match="not finite"):
        control.update(kl, 64)
    assert control.beta == 0.1


def test_a_horizon_too_short_for_the_batch_raises_before_beta_turns_negative():
    control = AdaptiveKL(0.1, 6.0, 10)
    with pytest.raises(ValueError, match="set the horizon well above 20"):
        control.update(0.0, 100)
    assert control.beta == 0.1


@pytest.mark.parametrize("name", ["init", "target", "horizon"])
def test_arguments_must_be_positive(name):
    arguments = {"init": 0.1, "target": 6.0, "horizon": 1000.0, name: 0.0}
    with pytest.raises(ValueError, match=f"{name} is 0.0"):
        AdaptiveKL(**arguments)


def test_fixed_stays():
    control = FixedKL(0.05)
    control.update(100.0, 64)
    assert control.beta == 0.05
    control.load_state_dict(control.state_dict())
    assert control.beta == 0.05
    with pytest.raises(ValueError, match="beta is -1"):
        FixedKL(-1)


def test_state_of_the_other_controller_is_refused():
    with pytest.raises(ValueError, match="expected an empty state"):
        FixedKL(0.05).load_state_dict(AdaptiveKL(0.1, 6.0, 1000).state_dict())
    with pytest.raises(ValueError, match="expected a state with the key beta"):
        AdaptiveKL(0.1, 6.0, 1000).load_state_dict(FixedKL(0.05).state_dict())

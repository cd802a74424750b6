import json

import pytest

from rayrlhf.algorithms.entropy_control import EntropyControl


def test_by_hand():
    control = EntropyControl(0.01, target=5.0, rate=0.002)
    control.update(4.5)  # below: 0.01 + 0.002 * 0.5
    assert control.coefficient == pytest.approx(0.011)
    control.update(5.0)
    assert control.coefficient == pytest.approx(0.011)
    control.update(20.0)  # 0.011 - 0.03 is no bonus at all, not a penalty
    assert control.coefficient == 0.0
    control.update(4.0)
    assert control.coefficient == pytest.approx(0.002)


def test_without_a_target_it_stays():
    control = EntropyControl(0.01)
    control.update(0.1)
    assert control.coefficient == 0.01


def test_it_holds_an_entropy_that_answers_to_it():
    """A policy whose entropy falls by 0.1 a step and rises by 20 times the coefficient settles on the target."""
    control, entropy = EntropyControl(0.0, target=4.0, rate=0.001), 5.0
    for _ in range(400):
        entropy += 20 * control.coefficient - 0.1 * (entropy - 3.0)
        control.update(entropy)
    assert entropy == pytest.approx(4.0, abs=1e-3)
    assert control.coefficient == pytest.approx(0.005, abs=1e-4)


def test_state_survives_json():
    control, other = EntropyControl(0.01, 5.0, 0.002), EntropyControl(0.01, 5.0, 0.002)
    control.update(4.0)
    other.load_state_dict(json.loads(json.dumps(control.state_dict())))
    assert other.coefficient == control.coefficient != 0.01


@pytest.mark.parametrize("arguments", [(-0.1,), (float("nan"),), (0.1, 5.0), (0.1, 5.0, -1.0)])
def test_arguments(arguments):
    with pytest.raises(ValueError, match="EntropyControl"):
        EntropyControl(*arguments)


def test_an_entropy_that_is_not_finite_raises():
    with pytest.raises(ValueError, match="entropy is nan"):
        EntropyControl(0.1, 5.0, 0.1).update(float("nan"))

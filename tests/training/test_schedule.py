"""The learning rate, by hand."""

import pytest

from rayrlhf.training.schedule import lr_factor


def test_warm_up_then_cosine_to_the_floor() -> None:
    factors = [lr_factor(step, warmup_steps=3, total_steps=8, min_ratio=0.1) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[5] == pytest.approx(0.55)  # half of the cosine: the mean of 1 and 0.1
    assert factors[7:] == pytest.approx([0.1, 0.1, 0.1])


def test_without_decay() -> None:
    assert {lr_factor(step, 0, 5, 1.0) for step in range(9)} == {1.0}


def test_one_step() -> None:
    assert lr_factor(0, 0, 1, 0.1) == 1.0

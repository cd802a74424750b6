"""unit_direction: the direction whose output is 1, by hand and on states that it was not made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayrlhf.algorithms.head_shift import unit_direction


def test_by_hand() -> None:
    # the first coordinate is always 2, the second says nothing: v = (1/2, 0)
    hidden = torch.tensor([[2.0, 1.0], [2.0, -1.0], [2.0, -3.0], [2.0, 3.0]])
    direction, deviation = unit_direction(hidden, hidden)
    torch.testing.assert_close(direction, torch.tensor([0.5, 0.0], dtype=torch.float64), atol=1e-5, rtol=0)
    assert deviation < 1e-4


def test_one_ridge_against_the_normal_equations(monkeypatch: pytest.MonkeyPatch, normal) -> None:
    monkeypatch.setattr("rayrlhf.algorithms.head_shift._RIDGES", (0.1,))
    whole, cut = normal(0, 6, 3) + 1, normal(1, 6, 3)
    direction, _ = unit_direction(whole, cut)
    hidden = torch.cat([whole, cut]).double()
    second = hidden.T @ hidden / 12
    expected = torch.linalg.solve(second + 0.1 * second.trace() / 3 * torch.eye(3).double(), hidden.mean(0))
    torch.testing.assert_close(direction, expected / (whole.double().mean(0) @ expected))


def states(seed: int, count: int, size: int = 40, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Texts whole and cut: one direction they share, one that only whole ones have, noise in all."""
    generator = torch.Generator().manual_seed(seed)
    noise = spread * torch.randn(2, count, size, generator=generator)
    whole, cut = noise
    whole[:, 0] += 3
    cut[:, 0] += 3
    whole[:, 1] += 3
    return whole, cut


@pytest.mark.parametrize("count", [16, 30, 400])  # fewer texts than dimensions, too
def test_the_mean_is_one_and_the_deviation_that_of_new_texts(count: int) -> None:
    whole, cut = states(0, count)
    direction, deviation = unit_direction(whole, cut)
    assert float((whole.double() @ direction).mean()) == pytest.approx(1, abs=1e-12)
    new, new_cut = (some.double() @ direction for some in states(1, 2000))
    assert 0.7 < deviation / float(((new - 1) ** 2).mean().sqrt()) < 1.4, "what is told holds for new texts"
    assert deviation < 0.15 and float(new_cut.mean()) == pytest.approx(1, abs=0.15), "cut texts are shifted as well"


def test_what_says_nothing_is_refused() -> None:
    for shapes in (((3, 5), (3, 5)), ((4, 5), (4, 6)), ((8,), (8,))):
        with pytest.raises(ValueError, match="N >= 4"):
            unit_direction(*(torch.ones(shape) for shape in shapes))
    with pytest.raises(ValueError, match="mean hidden state is 0"):
        unit_direction(torch.zeros(4, 2), torch.ones(4, 2))

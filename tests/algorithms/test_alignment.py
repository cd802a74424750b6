import pytest
import torch

from rayrlhf.algorithms.alignment import shift_right


def test_every_entry_moves_one_to_the_right_and_zero_comes_in():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, float("nan")]])
    assert torch.equal(shift_right(x), torch.tensor([[0.0, 1.0, 2.0], [0.0, 4.0, 5.0]]))


def test_dtype_stays():
    assert torch.equal(shift_right(torch.tensor([[7, 8]])), torch.tensor([[0, 7]]))
    assert torch.equal(shift_right(torch.tensor([[True, False]])), torch.tensor([[False, True]]))


def test_gradient_goes_back_one_to_the_left():
    x = torch.ones(1, 3, requires_grad=True)
    (shift_right(x) * torch.tensor([[10.0, 20.0, 30.0]])).sum().backward()
    assert x.grad.tolist() == [[20.0, 30.0, 0.0]]


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"got shape \[2, 3, 4\]"):
        shift_right(torch.zeros(2, 3, 4))

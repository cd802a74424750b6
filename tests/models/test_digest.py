"""Digests: equal for equal values, different for any difference."""

import torch

from rayrlhf.models.digest import tensor_digest


def test_depends_on_values_shape_and_dtype_only():
    x = torch.arange(6.0).reshape(2, 3)
    same = torch.arange(6.0).reshape(3, 2).T.contiguous().T.reshape(3, 2)  # another memory layout
    assert tensor_digest(x) == tensor_digest(x.clone())
    assert tensor_digest(same) == tensor_digest(torch.arange(6.0).reshape(3, 2))
    assert tensor_digest(x.T) != tensor_digest(x)
    assert tensor_digest(x.T) == tensor_digest(x.T.contiguous())
    assert tensor_digest(x.reshape(6)) != tensor_digest(x)
    assert tensor_digest(x.double()) != tensor_digest(x)


def test_one_changed_bit_shows():
    x = torch.randn(1000)
    y = x.clone()
    y.view(torch.int32)[500] ^= 1
    assert tensor_digest(x) != tensor_digest(y)


def test_bfloat16_scalars_and_empty_tensors():
    values = [torch.randn(3).bfloat16(), torch.tensor(1.0), torch.empty(0, 4)]
    assert len({tensor_digest(value) for value in values}) == 3

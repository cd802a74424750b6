"""A tensor comes back as it was, through pickle and read-only memory."""

import pickle
import warnings

import pytest
import torch

from rayrlhf.models.tensor_bytes import TensorBytes


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5),
        torch.randn(4, 6)[:, ::2],
        torch.randn(2, 3, dtype=torch.bfloat16),
        torch.tensor(2.5),
        torch.empty(0, 4),
        torch.arange(5),
    ],
    ids=["float32", "not contiguous", "bfloat16", "a number", "empty", "int64"],
)
def test_what_comes_out_is_what_went_in(tensor):
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(TensorBytes.of(tensor), protocol=5, buffer_callback=buffers.append)
    frozen = [bytes(buffer.raw()) for buffer in buffers]  # read-only, as the object store's memory is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(data, buffers=frozen).tensor()
    assert again.dtype == tensor.dtype and again.shape == tensor.shape and torch.equal(again, tensor)
    assert len(data) < 1000, "the bytes are in the buffers"


def test_nothing_is_copied():
    tensor = torch.zeros(4)
    stored = TensorBytes.of(tensor)
    tensor[1] = 7
    assert stored.tensor().tolist() == [0, 7, 0, 0]

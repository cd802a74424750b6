"""Random ragged batches for the comparisons with slow loops."""

import pytest
import torch


@pytest.fixture
def ragged_mask():
    """(rows, length, seed) -> bool mask: prompt, response with holes, padding; each row with a True."""

    def make(rows: int, length: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.zeros(rows, length, dtype=torch.bool)
        for row in range(rows):
            start = int(torch.randint(0, length - 2, (), generator=generator))
            stop = int(torch.randint(start + 1, length + 1, (), generator=generator))
            mask[row, start:stop] = torch.rand(stop - start, generator=generator) < 0.8
            mask[row, start] = True
        return mask

    return make


@pytest.fixture
def normal():
    """(seed, *shape) -> float64 normal numbers, the same for the same seed."""

    def make(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    return make

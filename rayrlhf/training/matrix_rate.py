"""How fast this machine multiplies matrices, measured, and what share of that training reaches."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable

import torch
import torch.distributed as dist

from rayrlhf.models.precision import matrix_dtype
from rayrlhf.training import distributed
from rayrlhf.training.engine import Engine
from rayrlhf.training.flops import Text, flops, model_shape

_BUDGET_S = 0.2
_SIZES = (128, 256, 512, 1024, 2048, 4096)


class MatrixShare:
    """What an engine's passes reach of what all of its ranks together could multiply."""

    def __init__(self, engine: Engine) -> None:
        """Measures; every rank calls it, before its first update."""
        dist.barrier()  # side by side, as they train: ranks of one machine share its memory and caches
        dtype = matrix_dtype(engine.device, engine.config.precision)
        own = {"rate": matrix_rate(engine.device, dtype, torch.get_num_threads())}
        self._rate = distributed.sum_over_ranks(own, engine.device)["rate"]
        self._shape = model_shape(engine.module)

    def metrics(
        self, prefix: str, trained: Iterable[Text], seconds: float, forward_only: Iterable[Text] = ()
    ) -> dict[str, float]:
        """`PREFIX_tflops`, the measured rate; and `PREFIX_share`, the part of it that passes over the texts `trained`
        (and forward alone over `forward_only`), of all ranks, reached in `seconds`; the share is
        left out for a model whose operations are not known."""
        metrics = {f"{prefix}_tflops": self._rate / 1e12}
        if self._shape is not None:
            done = flops(self._shape, trained) + flops(self._shape, forward_only, backward=False)
            metrics[f"{prefix}_share"] = done / seconds / self._rate
        return metrics


@functools.cache
def matrix_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Operations a second of the fastest square matrix product on `device` with `threads` CPU threads; takes 0.2 s.

    Best of several tries at growing sizes: other processes make a try slower, never faster.  Draws no random number.
    `threads` is torch's number of them as it is, given so that another number is measured anew.
    """
    end, best, took = time.perf_counter() + _BUDGET_S, 0.0, 0.0
    for size in _SIZES:
        if took * 8 * 2 > end - time.perf_counter():  # eight times the operations, twice
            break
        numbers = torch.arange(size * size, device=device, dtype=torch.float32).remainder_(7).sub_(3)
        one = numbers.view(size, size).to(dtype)
        out = torch.empty_like(one)
        _seconds(one, out)  # libraries prepare themselves at the first
        took, until = _seconds(one, out), time.perf_counter() + _BUDGET_S / len(_SIZES)
        while time.perf_counter() < min(until, end):
            took = min(took, _seconds(one, out))
        best = max(best, 2 * size**3 / took)
    return best


def _seconds(one: torch.Tensor, out: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(one, one.t(), out=out)  # as a linear layer does: some kernels are slower the other way
    if one.device.type == "cuda":
        torch.cuda.synchronize(one.device)
    return time.perf_counter() - start

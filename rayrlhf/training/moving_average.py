"""The exponential moving average of a model in training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rayrlhf.training.engine import Engine

_BUCKET_BYTES = 1 << 30


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights, in float32 on the CPU of rank 0.

    It starts as the weights are.  Every rank calls each method: under ZeRO 3 the weights are gathered
    from all.  Source: Polyak & Juditsky 1992; for RLHF policies Ramé et al. 2024, "WARP".
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.weights: dict[str, Tensor] = {}
        for bucket in engine.weight_buckets(_BUCKET_BYTES):
            self.weights |= {name: tensor.float().cpu() for name, tensor in (bucket or {}).items()}

    def update(self) -> None:
        """Take the present weights in."""
        for bucket in self.engine.weight_buckets(_BUCKET_BYTES):
            for name, tensor in (bucket or {}).items():
                self.weights[name].lerp_(tensor.float().cpu(), 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights; empty but on rank 0."""
        return dict(self.weights)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        if self.engine.rank == 0:
            self.weights = dict(state)

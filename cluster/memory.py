"""A rough estimate of each actor's memory, for the plan shown before anything starts."""

from __future__ import annotations

import math

from rayrlhf.models.headers import tensor_shapes

_GIB = 2**30
_PROCESS_GIB = 0.8  # a Python process with torch, transformers and Ray: measured 0.7 to 0.9
_ENGINE_GIB = 1.4  # the same with vLLM: 1.7 GB resident, of which 1 GiB cache counts only where touched


def parameters_in(folder: str) -> int:
    """Number of parameters in a Hugging Face folder; ModelError without whole safetensors files."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def estimate(
    role: str,
    num_parameters: int,
    ranks: int = 1,
    zero_stage: int = 0,
    kv_cache_gib: float = 0.0,
    num_adapter: int | None = None,
) -> float:
    """GiB that one actor of `role` holds, in float32, without activations.

    policy and critic: weights, gradients and two Adam moments, divided over the ranks as ZeRO's
    stage divides them (Rajbhandari et al. 2020: moments from 1, gradients from 2, weights at 3);
    with an adapter of `num_adapter` parameters only those have gradients and moments;
    rollout: weights and KV cache; reference and reward: weights.
    """
    weights = 4 * num_parameters / _GIB
    if role == "rollout":
        return _ENGINE_GIB + weights + kv_cache_gib
    if role not in ("policy", "critic"):
        return _PROCESS_GIB + weights
    trained = weights
    if num_adapter is not None:
        trained = 4 * num_adapter / _GIB
        weights += trained
    moments = 2 * trained / (ranks if zero_stage >= 1 else 1)
    gradients = trained / (ranks if zero_stage >= 2 else 1)
    held = weights / (ranks if zero_stage >= 3 else 1)
    return _PROCESS_GIB + moments + gradients + held

"""A rough estimate of each actor's memory, for the plan shown before anything starts."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from rayrlhf.errors import ModelError

_GIB = 2**30
_PROCESS_GIB = 0.8  # a Python process with torch, transformers and Ray: measured 0.7 to 0.9
_ENGINE_GIB = 1.4  # the same with vLLM: 1.7 GB resident, of which 1 GiB cache counts only where touched


def parameters_in(folder: str) -> int:
    """Number of parameters in a Hugging Face folder, from the headers of its safetensors files.

    Raises ModelError when there are none.
    """
    count = 0
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ModelError(f"no *.safetensors in {folder}; give a Hugging Face folder saved as safetensors")
    for file in files:
        # https://huggingface.co/docs/safetensors: 8 bytes of header length, then JSON
        with file.open("rb") as stream:
            size = file.stat().st_size
            try:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(length) if length <= size else b"")
            except (struct.error, ValueError) as error:
                raise ModelError(f"{file} is no whole safetensors file ({size} bytes): copy the model again") from error
        count += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return count


def estimate(role: str, num_parameters: int, ranks: int = 1, zero_stage: int = 0, kv_cache_gib: float = 0.0) -> float:
    """GiB that one actor of `role` holds, in float32, without activations.

    policy and critic: weights, gradients and two Adam moments, divided over the ranks as ZeRO's
    stage divides them (Rajbhandari et al. 2020: moments from 1, gradients from 2, weights at 3);
    rollout: weights and KV cache; reference and reward: weights.
    """
    weights = 4 * num_parameters / _GIB
    if role == "rollout":
        return _ENGINE_GIB + weights + kv_cache_gib
    if role not in ("policy", "critic"):
        return _PROCESS_GIB + weights
    moments = 2 * weights / (ranks if zero_stage >= 1 else 1)
    gradients = weights / (ranks if zero_stage >= 2 else 1)
    held = weights / (ranks if zero_stage >= 3 else 1)
    return _PROCESS_GIB + moments + gradients + held

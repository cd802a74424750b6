"""An estimate of each actor's peak memory, for the plan shown before anything starts.

On a GPU it is the device's memory, elsewhere the process's.  `benchmarks/role_memory.py` compares it with what the
roles of a run have held (`perf/ROLE_memory_gib`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from rayrlhf.models.targets import Shapes, linear_layers
from rayrlhf.training.config import EngineConfig

_GIB = 2**30
_FLOAT32 = 4
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A process with torch, transformers and Ray; with DeepSpeed besides; with vLLM: role-memory-demo-2026-12-01.json
_PROCESS_GIB, _TRAINER_GIB, _ENGINE_GIB = 0.54, 0.58, 1.0
_REDUCE_BUCKET = 500_000_000  # elements; rayrlhf.training.engine
_LIVE_PARAMETERS = 1_000_000_000  # ZeRO 3 keeps as many gathered (DeepSpeed's stage3_max_live_parameters)
# Tensors of [tokens, vocabulary] in float32, as many as a pass holds at its peak.  Measured on a CPU, 4,096 tokens and
# 32,768 words (benchmarks/pass_memory.py, twice on 2026-12-01): with gradients 3.7 to 4.9 in float32, 2.5 to 2.6 in
# bfloat16; without 0.5 to 1.5, as the allocator may not reuse one for a pass of another length
_WITH_GRADIENTS, _WITH_GRADIENTS_BF16, _WITHOUT = 5, 3, 2
ROWS_AHEAD_GIB = 0.2  # rows that a worker of Ray Train reads ahead, pages of Ray's object store


@dataclass(frozen=True)
class Memory:
    """What one actor holds at its peak, in GiB."""

    process: float = 0.0  # Python and the libraries; nothing of it is on a GPU
    weights: float = 0.0
    optimizer: float = 0.0  # gradients, the optimizer's states, ZeRO's copies and buffers
    activations: float = 0.0
    cache: float = 0.0  # of keys and values

    @property
    def total(self) -> float:
        """All of it."""
        return self.process + self.device

    @property
    def device(self) -> float:
        """What lies on a GPU where the actor has one."""
        return self.weights + self.optimizer + self.activations + self.cache


def parameters(shapes: Shapes) -> int:
    """How many numbers the weights are."""
    return sum(math.prod(shape) for shape in shapes.values())


def trained(
    shapes: Shapes,
    engine: EngineConfig,
    ranks: int,
    train_tokens: int,
    forward_tokens: int = 0,
    num_adapter: int | None = None,
    has_logits: bool = True,
    offload: bool = False,
) -> Memory:
    """One rank of an engine, in float32 (`precision` bf16 computes in bfloat16 and holds float32); `offload` as in
    `Engine`.

    Weights W, gradients and two Adam moments, divided over the ranks as ZeRO's stage divides them (Rajbhandari et al.
    2020: moments from 1, gradients from 2, weights at 3).  DeepSpeed 0.19 holds besides, at stage 0: two buffers of all
    gradients as they are reduced; from 1 on: a buffer for them, and of the rank's part a copy of the weights, the
    reduced gradients twice (in pieces and flat) and what Adam computes in.  With an adapter of `num_adapter` parameters
    only those have any of it.  Activations are those of `train_tokens` tokens with gradients or of `forward_tokens`
    without.
    """
    num_trained = parameters(shapes) if num_adapter is None else num_adapter
    weights, trainable = float(_FLOAT32 * parameters(shapes)), float(_FLOAT32 * num_trained)
    weights += 0 if num_adapter is None else trainable
    stage = engine.stage(ranks, num_trained, offload)
    part = trainable / ranks if stage >= 1 else trainable
    moments = (2 if engine.optimizer == "adamw" else 0) * part
    gradients = part if stage >= 2 else trainable
    buffers = 2 * trainable
    if stage >= 1:
        buffers = min(trainable, _FLOAT32 * _REDUCE_BUCKET) + 3 * part
    if stage == 1:
        buffers += part
    if stage == 3:
        weights = weights / ranks + min(weights, _FLOAT32 * _LIVE_PARAMETERS)
    held = max(
        _activations(shapes, train_tokens, engine.precision, has_logits, True),
        _activations(shapes, forward_tokens, engine.precision, has_logits, False),
    )
    return Memory(_TRAINER_GIB, weights / _GIB, (moments + gradients + buffers) / _GIB, held / _GIB)


def frozen(shapes: Shapes, forward_tokens: int, precision: str = "float32", has_logits: bool = True) -> Memory:
    """A reference or a reward model: weights in float32, and passes of `forward_tokens` tokens without gradients."""
    held = _activations(shapes, forward_tokens, precision, has_logits, False)
    return Memory(_PROCESS_GIB, _FLOAT32 * parameters(shapes) / _GIB, 0.0, held / _GIB)


def rewarding(shapes: Shapes, forward_tokens: int, function: str | None) -> Memory:
    """A reward model, or what a reward `function` takes by itself: a process and a tokenizer."""
    return Memory(_PROCESS_GIB) if function else frozen(shapes, forward_tokens, has_logits=False)


class Engine(Protocol):
    """What `sampler` reads of `actors.config.RolloutConfig`."""

    @property
    def engine(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def kv_cache_gib(self) -> float: ...
    @property
    def tensor_parallel(self) -> int: ...


def sampler(shapes: Shapes, config: Engine) -> Memory:
    """A vLLM engine, over its `tensor_parallel` workers together; or its twin in transformers, whose cache grows with
    what it samples."""
    weights = _BYTES[config.dtype] * parameters(shapes) / _GIB
    if config.engine != "vllm":
        return Memory(_PROCESS_GIB, weights)
    return Memory(_ENGINE_GIB * config.tensor_parallel, weights, cache=config.kv_cache_gib * config.tensor_parallel)


def _activations(shapes: Shapes, tokens: int, precision: str, has_logits: bool, has_gradients: bool) -> float:
    """Bytes.  A linear layer's input is kept for its gradient, and what stands between linear layers (norms, rotary
    positions, attention, the gate) keeps about as much as their outputs: of Llama's block 9 hidden + 2 key and value +
    4 intermediate widths a token, against 9, 2 and 3 of the layers' inputs and outputs.  The backward pass's own
    tensors and what the allocator cannot reuse make half as much again, measured."""
    layers = linear_layers(shapes)
    widths = [sum(shape) for shape in layers.values()]
    if not has_gradients:
        widths = sorted(widths)[-2:]  # two neighbours are there at once
    bytes_each = 4.0 if precision == "bf16" else 6.0
    body = tokens * bytes_each * sum(widths)
    copies = (_WITH_GRADIENTS_BF16 if precision == "bf16" else _WITH_GRADIENTS) if has_gradients else _WITHOUT
    return body + (copies * _FLOAT32 * tokens * vocabulary(shapes) if has_logits else 0)


def vocabulary(shapes: Shapes) -> int:
    """The longer side of the largest matrix outside the numbered blocks, the embedding."""
    inside = {f"{name}.weight" for name in linear_layers(shapes)}
    outer = [shape for name, shape in shapes.items() if len(shape) == 2 and name not in inside]
    return max(max(outer, key=math.prod), default=0) if outer else 0

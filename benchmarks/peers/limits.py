"""What the machine allows: a row's matrix products at the fastest rate that a matrix product has on all cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

from benchmarks.peers.task import PPO_EPOCHS

_SIZE, _SECONDS = 1024, 3.0
Rates = dict[str, float]  # operations a second by dtype


def matrix_rate(dtype: str) -> float:
    """Operations a second of products of square matrices in float32 or bf16, a process a core, together."""
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return sum(pool.map(_rate, [dtype] * cores, chunksize=1))


def _rate(dtype: str) -> float:
    import torch

    torch.set_num_threads(1)
    one = torch.randn(_SIZE, _SIZE).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    out = torch.empty_like(one)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        torch.mm(one, one.t(), out=out)
        count += 1
    return 2 * _SIZE**3 * count / (time.perf_counter() - began)


def weights(model: Path) -> tuple[int, int]:
    """(of the layers' matrices, of the output head) of a Llama's folder."""
    c = json.loads((model / "config.json").read_text())
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    head = c.get("head_dim") or hidden // heads
    own = 2 * hidden * heads * head + 2 * hidden * c["num_key_value_heads"] * head + 3 * hidden * c["intermediate_size"]
    return c["num_hidden_layers"] * own, hidden * c["vocab_size"]


def tokens_per_s(row: str, model: Path, rate: float, is_adapter: bool) -> float:
    """Tokens a second that could be trained on at `rate`: 2 operations a weight and token forward, 2 for each gradient.

    Attention's own products are left out, and the head where few of its tokens are asked for, so nobody reaches it.
    Of dpo the reference's pass counts; sampling computes each token forward, with the head.
    """
    layers, head = weights(model)
    if row == "sampling":
        return rate / (2 * (layers + head))
    times = (4 if is_adapter else 6) + (2 if row == "dpo" else 0)
    return rate / (times * layers)


def step_seconds(row: str, model: Path, rates: Rates, dtype: str, response_tokens: float, is_adapter: bool) -> float:
    """Least seconds of an RL step that samples `response_tokens`: sampling, in float32; in `dtype` the reference,
    learning; of ppo also the critic's values, and epochs."""
    layers, head = weights(model)
    learn = (4 if is_adapter else 6) * (PPO_EPOCHS if row == "ppo" else 1)
    times = (2 + learn) * (layers + head)
    if row == "ppo":
        times += (2 + learn) * layers
    return response_tokens * (2 * (layers + head) / rates["float32"] + times / rates[dtype])

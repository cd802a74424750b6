"""Sampling alone: `python -m benchmarks.peers.generation our|trl MODEL PROMPTS OUT STEPS`, with all cores.

Ours is the rollout actor over vLLM, that also gives each token's log-prob; the other one is transformers' `generate`,
which TRL's trainers call.  A step is 64 responses of at most 64 tokens, 8 a prompt; a model that has learnt where texts
end ends them sooner.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.steps import Steps
from benchmarks.peers.task import MAX_NEW_TOKENS

ROWS, GROUP, PROMPT_TOKENS = 64, 8, 32


def batches(model: str, prompts: Path, steps: int) -> list[list[list[int]]]:
    """Token ids of each step's rows."""
    from rayrlhf.models.causal_lm import load_tokenizer

    tokenizer, each = load_tokenizer(model), ROWS // GROUP
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()[: steps * each]]
    ids = [tokenizer.encode(text)[:PROMPT_TOKENS] for text in texts]
    return [[row for row in ids[n * each : (n + 1) * each] for _ in range(GROUP)] for n in range(steps)]


def padded(rows: list[list[int]], on_the_left: bool) -> tuple[Tensor, Tensor]:
    """(ids, mask) `[B, T]`, filled with 0."""
    width = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(2))
    for n, row in enumerate(rows):
        place = slice(width - len(row), width) if on_the_left else slice(len(row))
        ids[n, place], mask[n, place] = torch.tensor(row), 1
    return ids, mask


class _AllCores:
    """A placement: the actor has all cores."""

    def options(self, role: str, rank: int) -> dict[str, Any]:
        return {
            "name": f"{role}-{rank}",
            "num_cpus": 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(os.cpu_count())}},
        }


def ours(model: str, rows: list[list[list[int]]]) -> Steps:
    from actors.config import RolloutConfig, SamplingConfig
    from actors.rollout import RolloutGroup
    from cluster.bring_up import connect, disconnect
    from rayrlhf.batches import Prompts

    async def sample() -> Steps:
        placement: Any = _AllCores()
        sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS)
        group = RolloutGroup(model, RolloutConfig(kv_cache_gib=0.5), sampling, placement, 1, deadline_s=300)
        await group.start(300)
        steps = Steps([], [])
        for number, batch in enumerate(rows):
            ids, mask = padded(batch, on_the_left=False)
            began = time.perf_counter()
            found = await group.generate(Prompts(ids, mask.sum(1), torch.arange(len(batch))), number)
            steps.seconds.append(time.perf_counter() - began)
            steps.tokens.append(int(found.response_mask.sum()))
        group.stop()
        return steps

    connect()
    try:
        return asyncio.run(sample())
    finally:
        disconnect()


def theirs(model: str, rows: list[list[list[int]]]) -> Steps:
    from transformers import AutoModelForCausalLM

    from rayrlhf.models.pretrained import model_of

    torch.manual_seed(0)
    causal: Any = model_of(AutoModelForCausalLM, model).eval()
    end = causal.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    steps = Steps([], [])
    for batch in rows:
        ids, mask = padded(batch, on_the_left=True)
        began = time.perf_counter()
        with torch.no_grad():
            found = causal.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
                pad_token_id=ends[0],
            )
        steps.seconds.append(time.perf_counter() - began)
        is_end = torch.isin(found[:, ids.shape[1] :], torch.tensor(ends))
        after = is_end.cumsum(1) - is_end.long()  # ends before a token
        steps.tokens.append(int((after == 0).sum()))
    return steps


def main(side: str, model: str, prompts: str, out: str, steps: int) -> None:
    rows = batches(model, Path(prompts), steps)
    (ours if side == "our" else theirs)(model, rows).write(out)


if __name__ == "__main__":
    side, model, prompts, out, steps = sys.argv[1:]
    main(side, model, prompts, out, int(steps))

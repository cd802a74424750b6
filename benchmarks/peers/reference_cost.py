"""What DPO's frozen reference costs us: its pass comes once before training, so no step's seconds have it."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

_ROWS = 256  # of each process


def seconds_a_row(task: Path, workers: int, microbatch_tokens: int, dtype: str) -> float:
    """Of a pair, with `workers` processes of one thread side by side as the job has them; epochs share it."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        took = pool.starmap(_judge, [(task, n, microbatch_tokens, dtype) for n in range(workers)], chunksize=1)
    return max(took) / (_ROWS * workers)


def _judge(task: Path, number: int, microbatch_tokens: int, dtype: str) -> float:
    import pyarrow as pa

    from benchmarks.peers.task import MAX_TOKENS
    from rayrlhf.models.causal_lm import load_tokenizer
    from rayrlhf.training.config import EngineConfig, TrainConfig
    from rayrlhf.training.reference import _Reference

    tokenizer = load_tokenizer(str(task / "model"))
    lines = (task / "dpo.jsonl").read_text().splitlines()[number * _ROWS : (number + 1) * _ROWS]
    rows = []
    for row in map(json.loads, lines):
        prompt = tokenizer.encode(row["prompt"])
        whole = [tokenizer.encode(row["prompt"] + row[name])[:MAX_TOKENS] for name in ("chosen", "rejected")]
        rows.append(
            {"chosen_ids": whole[0], "rejected_ids": whole[1], "prompt_length": min(len(prompt), MAX_TOKENS - 1)}
        )
    columns = {"chosen_ids": "ref_chosen", "rejected_ids": "ref_rejected"}
    train = TrainConfig(microbatch_tokens=microbatch_tokens, engine=EngineConfig(precision=dtype))
    judge = _Reference(columns, str(task / "model"), train)
    table = pa.Table.from_pylist(rows)
    judge(table.slice(0, 16))  # the first pass pays for more than itself
    began = time.perf_counter()
    judge(table)
    return time.perf_counter() - began

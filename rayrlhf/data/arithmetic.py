"""The second embedded task: sums of two two-digit numbers, whose answers a program checks.

    text               Q:23+48=A:71
    prompt_completion  Q:23+48=A:  and  71
    prompts            Q:23+48=A:

All 8,100 pairs; those held out are chosen by a hash, and no pair is on both sides.
"""

from __future__ import annotations

import re
from functools import cache, partial
from typing import TYPE_CHECKING

from rayrlhf.data.context import settle
from rayrlhf.data.order import by_content
from rayrlhf.data.rows import digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

NUMBERS = range(10, 100)
COUNT = len(NUMBERS) ** 2
_QUESTION = re.compile(r"Q:(\d+)\+(\d+)=A:")


def question(first: int, second: int) -> str:
    """The prompt that asks for a sum."""
    return f"Q:{first}+{second}=A:"


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where the response is the sum, digit by digit, and nothing else; 0 elsewhere.

    Raises ValueError for a prompt that asks for no sum.
    """
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        asked = _QUESTION.fullmatch(prompt)
        if asked is None:
            raise ValueError(f"the prompt {prompt[:80]!r} asks for no sum; expected the form {question(23, 48)!r}")
        scores.append(float(response == str(int(asked[1]) + int(asked[2]))))
    return scores


def tables(split: str, validation_share: float) -> dict[str, Dataset]:
    """The rows of "train" or "validation", by kind; round(validation_share * 8,100) pairs are held out."""
    from ray import data

    settle()
    num_held_out = round(validation_share * COUNT)
    numbered = data.range(COUNT).map_batches(
        partial(_rows, split=split, num_held_out=num_held_out), batch_format="pyarrow"
    )
    return {
        "text": by_content(numbered.select_columns(["text"])),
        "prompt_completion": by_content(numbered.select_columns(["prompt", "completion"])),
        "prompts": by_content(numbered.select_columns(["prompt"])),
    }


def _rows(batch: pa.Table, split: str, num_held_out: int) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, list[str]] = {"text": [], "prompt": [], "completion": []}
    for number in batch.column("id").to_pylist():
        if (number in _held_out(num_held_out)) != (split == "validation"):
            continue
        first, second = NUMBERS[number // len(NUMBERS)], NUMBERS[number % len(NUMBERS)]
        prompt, answer = question(first, second), str(first + second)
        for name, value in (("text", prompt + answer), ("prompt", prompt), ("completion", answer)):
            columns[name].append(value)
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


@cache
def _held_out(count: int) -> frozenset[int]:
    return frozenset(sorted(range(COUNT), key=lambda number: digest("arithmetic", str(number)))[:count])

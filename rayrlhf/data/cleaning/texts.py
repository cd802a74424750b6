"""Streams of texts for the models of cleaning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from rayrlhf.data.cleaning.reading import BAD, Reading, read
from rayrlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


def batches(path: str, format: str) -> Iterator[list[str]]:
    """The texts at `path`, some at a time; DataError at one that cannot be read."""
    batch: Any
    for batch in good_rows(path, format).iter_batches(batch_size=1024, batch_format="pyarrow"):
        yield batch["text"].to_pylist()


def good_rows(path: str, format: str) -> Dataset:
    """Rows {text} at `path`; DataError, when it is reached, at one that cannot be read."""
    return read(path, Reading(format)).map_batches(_whole, batch_format="pyarrow")


def labelled(good: str, bad: str, format: str, validation_share: float) -> dict[str, Dataset]:
    """Rows {text, good} of two sets, "train" and "validation"."""
    sides = [
        good_rows(path, format).map_batches(partial(_marked, is_good=is_good), batch_format="pyarrow")
        for path, is_good in ((good, True), (bad, False))
    ]
    rows = sides[0].union(sides[1])
    return {
        split: rows.map_batches(partial(_of_split, split=split, share=validation_share), batch_format="pyarrow")
        for split in ("train", "validation")
    }


def pairs(ds: Dataset) -> Iterator[tuple[str, bool]]:
    """(text, whether it is good) of rows {text, good}."""
    batch: Any
    for batch in ds.iter_batches(batch_size=1024, batch_format="pyarrow"):
        if batch.num_rows:
            yield from zip(batch["text"].to_pylist(), batch["good"].to_pylist(), strict=True)


def perplexity(nats: float, count: float) -> float:
    """exp of a mean, infinite where that is too large."""
    return math.exp(nats / count) if nats / count < 700 else math.inf


def _whole(batch: pa.Table) -> pa.Table:
    wrong = [problem for problem in batch[BAD].to_pylist() if problem is not None]
    if wrong:
        raise DataError(wrong[0])
    return batch.select(["text"])


def _marked(batch: pa.Table, is_good: bool) -> pa.Table:
    import pyarrow as pa

    return batch.append_column("good", pa.array([is_good] * batch.num_rows, pa.bool_()))


def _of_split(batch: pa.Table, split: str, share: float) -> pa.Table:
    import pyarrow as pa

    from rayrlhf.data.demo import split_of

    return batch.filter(pa.array([split_of(text, share) == split for text in batch["text"].to_pylist()], pa.bool_()))

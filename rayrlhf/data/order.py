"""One order of the rows over all epochs, whatever the blocks, the nodes and the number of workers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rayrlhf.data.context import settle
from rayrlhf.data.rows import content, digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_KEY = "_order"


def in_order(ds: Dataset, epochs: int, seed: int, ignored: tuple[str, ...] = (), ties: tuple[str, ...] = ()) -> Dataset:
    """`epochs` passes over `ds`, each shuffled its own way: a lazy dataset of `epochs` x as many rows.

    Rows are sorted by (epoch, hash of seed, epoch and the row's content), so that the stream depends
    on the set of rows and the seed alone; only equal rows can tie.  To resume, skip the rows used.
    Columns `ignored` do not count as content: computed numbers, whose last digits depend on the batch.  Columns `ties`,
    where they are there, only order rows that are equal without them.
    """
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: at least one pass is needed")
    settle(ds)
    keyed = ds.map_batches(
        partial(_repeat, epochs=epochs, seed=seed, ignored=ignored, ties=ties), batch_format="pyarrow"
    )
    return keyed.sort(_KEY).map_batches(_without_key, batch_format="pyarrow")


def by_content(ds: Dataset, ignored: tuple[str, ...] = (), ties: tuple[str, ...] = ()) -> Dataset:
    """The rows of `ds` in the order of a hash of their content: shuffled, and always alike."""
    return in_order(ds, epochs=1, seed=0, ignored=ignored, ties=ties)


def _repeat(batch: pa.Table, epochs: int, seed: int, ignored: tuple[str, ...], ties: tuple[str, ...]) -> pa.Table:
    import pyarrow as pa

    breaking = [name for name in batch.column_names if name in ties]
    known = batch.select([name for name in batch.column_names if name not in ignored and name not in ties])
    marks = [digest(content(row)) for row in known.to_pylist()]
    after = [digest(content(row)) for row in batch.select(breaking).to_pylist()] if breaking else [""] * len(marks)
    copies = []
    for epoch in range(epochs):
        keys = [
            f"{epoch:06d}{digest(str(seed), str(epoch), mark)}{last}" for mark, last in zip(marks, after, strict=True)
        ]
        copies.append(batch.append_column(_KEY, pa.array(keys, pa.string())))
    return pa.concat_tables(copies)


def _without_key(batch: pa.Table) -> pa.Table:
    return batch.drop_columns([_KEY])

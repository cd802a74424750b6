"""Rows between two passes: Parquet files of some thousand rows or some megabytes, and the keys that a step over all
rows asks for.

A row's number is (number of its shard, place in it), and nothing but shards, keys and numbers passes between passes:
memory is bounded by a shard a task, whatever the data's size.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 4096  # most rows of a shard
BYTES = 16 * 2**20  # of text, most in a shard; a single row may be longer
PLACE_BITS = 20  # a row number: shard << PLACE_BITS | place

Ids = Any  # a numpy array of int64


def pieces(table: pa.Table) -> Iterator[pa.Table]:
    """`table` in pieces of at most ROWS rows and about BYTES of text, none of them empty."""
    import pyarrow.compute as pc

    ends = np.cumsum(pc.binary_length(table["text"]).fill_null(0).to_numpy(), dtype=np.int64)
    start, before = 0, 0
    while start < len(ends):
        stop = int(np.searchsorted(ends, before + BYTES, side="right"))
        stop = min(max(stop, start + 1), start + ROWS)
        yield table.slice(start, stop - start)
        start, before = stop, int(ends[min(stop, len(ends)) - 1])


def write(table: pa.Table, folder: str, keys: dict[str, Any]) -> str:
    """Write rows and their keys (arrays) under a new name; returns the shard's path, "" for no rows.

    A task that is run again writes other files; those that nobody names go with the folder.
    """
    from pyarrow import parquet

    if not table.num_rows:
        return ""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{uuid.uuid4().hex}.parquet")
    parquet.write_table(table, path, compression="zstd")
    for name, array in keys.items():
        np.save(keys_path(path, name), array, allow_pickle=False)
    return path


def read(path: str) -> pa.Table:
    """The rows of a shard."""
    from pyarrow import parquet

    return parquet.read_table(path)


def keys_path(path: str, name: str) -> str:
    """Where a shard's keys of one name are."""
    return f"{path}.{name}.npy"


def row_ids(shard: int, places: Any) -> Ids:
    """The numbers of rows of a shard, from their places."""
    return (np.int64(shard) << PLACE_BITS) | places.astype(np.int64)


def of_shard(ids: Ids, shard: int) -> slice:
    """Where the rows of a shard are among sorted row numbers."""
    low, high = np.searchsorted(ids, [shard << PLACE_BITS, (shard + 1) << PLACE_BITS])
    return slice(int(low), int(high))


def places(ids: Ids) -> Any:
    """The places of rows in their shard."""
    return ids & ((1 << PLACE_BITS) - 1)

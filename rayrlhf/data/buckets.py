"""Rows that share something meet in one of a fixed number of groups, so that no process holds more than a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.data.grouped_data import GroupedData

# Fixed, so that groups do not depend on the machine.
NUM_BUCKETS = 16


def grouped(ds: Dataset, column: str) -> GroupedData:
    """`ds` by the values of `column`, 0 to NUM_BUCKETS - 1.

    Ray 2.60 loses the columns of empty blocks and then fails here: filter the groups, not the rows before.
    """
    return ds.groupby(column, num_partitions=NUM_BUCKETS)

"""Completions under prompts that they do not belong to: KTO's view of how far a policy has moved."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rayrlhf.data.rows import content, digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_BUCKET = "_bucket"
_ROWS = 10_000  # about as many in a bucket, which one task holds


def with_mismatched(ds: Dataset, max_tokens: int) -> Dataset:
    """Encoded labelled rows, each with `kl_ids`: its prompt and the completion of another row, cut to `max_tokens`.

    The other one is the next in the order of a hash among the rows of its bucket (after the last: the first).
    Computed now, as the number of buckets depends on that of the rows.  Source: Ethayarajh et al. 2024,
    section 4.2 (the reference point is estimated from mismatched pairs, there within a microbatch).
    """
    rows = ds.materialize()
    count = rows.count()
    if not count:
        return rows
    num_buckets = count // _ROWS + 1
    marked = rows.map_batches(partial(_bucketed, num_buckets=num_buckets), batch_format="pyarrow")
    buckets = marked.groupby(_BUCKET, num_partitions=num_buckets)
    return buckets.map_groups(partial(_with_next, max_tokens=max_tokens), batch_format="pyarrow")


def labelled(ds: Dataset) -> Dataset:
    """Encoded preference rows as labelled ones: the chosen text good, the rejected one bad."""
    return ds.map_batches(_taken_apart, batch_format="pyarrow")


def _bucketed(batch: pa.Table, num_buckets: int) -> pa.Table:
    import pyarrow as pa

    buckets = [int(digest("mismatched", content(row))[:8], 16) % num_buckets for row in batch.to_pylist()]
    return batch.append_column(_BUCKET, pa.array(buckets, pa.int64()))


def _with_next(group: pa.Table, max_tokens: int) -> pa.Table:
    import pyarrow as pa

    rows = sorted(group.drop_columns([_BUCKET]).to_pylist(), key=lambda row: digest("next", content(row)))
    for mine, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
        prompt, completion = mine["input_ids"][: mine["prompt_length"]], other["input_ids"][other["prompt_length"] :]
        mine["kl_ids"] = (prompt + completion)[:max_tokens]
    fields = [field for field in group.schema if field.name != _BUCKET]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("kl_ids", pa.list_(pa.int32()))]))


def _taken_apart(batch: pa.Table) -> pa.Table:
    import pyarrow as pa

    parts = [
        pa.table(
            {
                "input_ids": batch.column(name),
                "prompt_length": batch.column("prompt_length"),
                "label": pa.array([name == "chosen_ids"] * len(batch), pa.bool_()),
            }
        )
        for name in ("chosen_ids", "rejected_ids")
    ]
    return pa.concat_tables(parts)

"""Texts packed into rows of one length: long ones in pieces, short ones together, none of them merged.

    text  -> pieces of at most `length` tokens, the next one beginning `overlap` tokens before the end of the last
    piece -> the fullest row of its window that has room for it, the longest piece first (best-fit decreasing)

A row keeps the `lengths` of its pieces; a forward pass starts positions anew with each and lets it see only itself.
Ding et al. 2024, "Fewer Truncations Improve Language Modeling", pack so a whole corpus; here it is packed in
windows of about `buffer` pieces, told by a hash, so that no process holds more and no block or node matters.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rayrlhf.data.config import PackingConfig
from rayrlhf.data.rows import content, digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_WINDOW = "_window"
_PARTITIONS = 64


def packed(ds: Dataset, length: int, config: PackingConfig) -> Dataset:
    """Encoded text rows of any length as rows {input_ids, loss_mask, lengths} of at most `length` tokens.

    Reads all of `ds` now, as the number of windows depends on that of the pieces.
    """
    cut = partial(_cut, length=length, overlap=config.overlap)
    found = ds.map_batches(cut, batch_format="pyarrow").materialize()
    count = found.count()
    if not count:
        return found
    num_windows = -(-count // config.buffer)
    marked = found.map_batches(partial(_marked, num_windows=num_windows), batch_format="pyarrow")
    windows = marked.groupby(_WINDOW, num_partitions=min(num_windows, _PARTITIONS))
    return windows.map_groups(partial(_packed_window, length=length), batch_format="pyarrow")


def fill(rows: Dataset, length: int) -> tuple[int, int, float]:
    """(pieces, tokens, the share of `length` x rows that is filled) of packed rows."""
    sums = rows.map_batches(_counts, batch_format="pyarrow").sum(["pieces", "tokens", "rows"])
    pieces, tokens, count = (int(sums[f"sum({name})"]) for name in ("pieces", "tokens", "rows"))  # type: ignore[index]
    return pieces, tokens, tokens / (count * length)


def pieces(num_tokens: int, length: int, overlap: int) -> list[tuple[int, int]]:
    """(first, last + 1) of each piece of a text of `num_tokens` tokens; the last one may be shorter."""
    if num_tokens <= length:
        return [(0, num_tokens)]
    step = length - overlap
    return [(start, min(start + length, num_tokens)) for start in range(0, num_tokens - overlap, step)]


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of `sizes` in bins of `capacity`: the largest first, each into the fullest bin that has room.

    Of equal sizes the first comes first, of equally full bins the oldest is taken.  About 11/9 of the fewest possible
    bins at most (Johnson et al. 1974).
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, bin), sorted
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        size = sizes[number]
        if size > capacity:
            raise ValueError(f"a piece of {size} tokens does not fit a row of {capacity}")
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            bins.append([])
            left, chosen = capacity, len(bins) - 1
        else:
            left, chosen = room.pop(place)
        bins[chosen].append(number)
        bisect.insort(room, (left - size, chosen))
    return bins


def _cut(batch: pa.Table, length: int, overlap: int) -> pa.Table:
    """Every text in pieces.  What a piece has in common with the one before it counts in the loss of that one, and
    nothing predicts the first token of a piece."""
    import pyarrow as pa

    rows = []
    for row in batch.to_pylist():
        for start, end in pieces(len(row["input_ids"]), length, overlap):
            repeated = overlap if start else 0
            mask = [False] * max(1, repeated) + row["loss_mask"][start + max(1, repeated) : end]
            rows.append({"input_ids": row["input_ids"][start:end], "loss_mask": mask})
    return pa.Table.from_pylist(rows, schema=batch.schema)


def _marked(batch: pa.Table, num_windows: int) -> pa.Table:
    import pyarrow as pa

    windows = [int(digest("window", content(row))[:12], 16) % num_windows for row in batch.to_pylist()]
    return batch.append_column(_WINDOW, pa.array(windows, pa.int64()))


def _packed_window(group: pa.Table, length: int) -> pa.Table:
    import pyarrow as pa

    found = sorted(group.drop_columns([_WINDOW]).to_pylist(), key=content)
    rows = []
    for numbers in best_fit([len(row["input_ids"]) for row in found], length):
        some = [found[n] for n in numbers]
        rows.append(
            {
                "input_ids": [token for row in some for token in row["input_ids"]],
                "loss_mask": [counts for row in some for counts in row["loss_mask"]],
                "lengths": [len(row["input_ids"]) for row in some],
            }
        )
    fields = [field for field in group.schema if field.name != _WINDOW]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("lengths", pa.list_(pa.int32()))]))


def _counts(batch: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    tokens = pc.sum(pc.list_value_length(batch["input_ids"])).as_py() or 0
    count = pc.sum(pc.list_value_length(batch["lengths"])).as_py() or 0
    return pa.table({"pieces": [count], "tokens": [tokens], "rows": [batch.num_rows]})

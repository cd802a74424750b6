"""Cleaning of text rows: normal form, length limits, exact duplicates; every step's rows are counted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rayrlhf.data.rows import content, digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset
    from ray.data.grouped_data import GroupedData

# Equal texts meet in one of these groups.  Fixed, so that groups do not depend on the machine.
NUM_BUCKETS = 16
ROWS_PER_BLOCK = 4096
_BUCKET, _FATE = "_bucket", "_fate"
KEPT, TOO_SHORT, TOO_LONG, DUPLICATE = "kept", "too_short", "too_long", "duplicate"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")


def normalise(text: str) -> str:
    """Unicode NFC, no control characters, single spaces, at most one empty line in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    text = re.sub(r"[^\S\n]+", " ", _CONTROL.sub("", text))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def clean(
    ds: Dataset, min_chars: int, max_chars: int, normal_form: Callable[[str], str] = normalise
) -> tuple[Dataset, dict[str, int]]:
    """Rows of `ds` (a `text` column, others are kept) in normal form, within limits, each text once.

    Returns them, held in Ray's object store, and how many rows were read, dropped for what, and kept.
    Of rows with the same text the first in the order of their content stays.
    """
    mark = partial(_mark, min_chars=min_chars, max_chars=max_chars, normal_form=normal_form)
    buckets = grouped(ds.map_batches(mark, batch_format="pyarrow"), _BUCKET)
    fated = buckets.map_groups(_mark_duplicates, batch_format="pyarrow").materialize()
    fates = {row[_FATE]: row["count()"] for row in fated.groupby(_FATE).count().take_all()}
    counts = {fate: fates.get(fate, 0) for fate in (TOO_SHORT, TOO_LONG, DUPLICATE, KEPT)}
    counts["read"] = sum(counts.values())
    kept = fated.map_batches(_keep, batch_format="pyarrow")
    return kept.repartition(max(1, counts[KEPT] // ROWS_PER_BLOCK)).materialize(), counts


def grouped(ds: Dataset, column: str) -> GroupedData:
    """`ds` by the values of `column`, 0 to NUM_BUCKETS - 1.

    Ray 2.60 loses the columns of empty blocks and then fails here: filter the groups, not the rows before.
    """
    return ds.groupby(column, num_partitions=NUM_BUCKETS)


def _mark(batch: pa.Table, min_chars: int, max_chars: int, normal_form: Callable[[str], str]) -> pa.Table:
    import pyarrow as pa

    texts = [normal_form(text) for text in batch["text"].to_pylist()]
    fates = [TOO_SHORT if len(text) < min_chars else TOO_LONG if len(text) > max_chars else KEPT for text in texts]
    buckets = [int(digest(text)[:8], 16) % NUM_BUCKETS for text in texts]
    batch = batch.set_column(batch.schema.get_field_index("text"), "text", pa.array(texts, pa.string()))
    return batch.append_column(_BUCKET, pa.array(buckets)).append_column(_FATE, pa.array(fates, pa.string()))


def _mark_duplicates(group: pa.Table) -> pa.Table:
    import pyarrow as pa

    rows = sorted(group.to_pylist(), key=content)
    seen: set[str] = set()
    for row in rows:
        if row[_FATE] == KEPT and row["text"] in seen:
            row[_FATE] = DUPLICATE
        seen.add(row["text"])
    return pa.Table.from_pylist(rows, schema=group.schema)


def _keep(batch: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    return batch.filter(pc.equal(batch[_FATE], KEPT)).drop_columns([_BUCKET, _FATE])

"""Cleaning of a data set: its steps in as few passes as their order allows, each a stream of Ray Data's tasks.

    rows -> pass -> shards, counts, keys -> (keys grouped -> which rows go) -> pass over shards -> ... -> shards

The driver sees counts, paths of shards and the numbers of rows that go, never a text.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrlhf.data.cleaning import decontaminate, duplicates, minhash, shards
from rayrlhf.data.cleaning.config import Decontaminate, NearDuplicates, Step
from rayrlhf.data.cleaning.operators import names, stages
from rayrlhf.data.cleaning.passes import ModelPass, Named, Pass, ShardCounts, Verdict
from rayrlhf.data.cleaning.reading import MAX_TASKS, too_many
from rayrlhf.data.context import settle
from rayrlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_KEYS_PER_GROUP = 1_000_000
_MIN_GROUPS = 8
_SAY_EVERY_S = 10.0
# reasons that are counted also where there were none
_ALWAYS = {
    "length": ("too_short", "too_long"),
    "exact_duplicates": ("duplicate",),
    "near_duplicates": ("near_duplicate",),
    "decontaminate": ("contaminated",),
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cleaned:
    """The shards of the rows that stayed, and what was counted on the way, the steps in their order."""

    steps: tuple[Step, ...]
    paths: list[str]
    counts: ShardCounts

    def fates(self) -> dict[str, int]:
        """Rows read, dropped for what, and kept."""
        found = {reason: 0 for step in self.steps for reason in _ALWAYS.get(step.kind, ())}
        for count in self.counts.steps.values():
            for reason, number in count.dropped.items():
                found[reason] = found.get(reason, 0) + number
        return found | {"kept": self.counts.rows, "read": self.counts.rows_read}


def clean(
    ds: Dataset,
    steps: Sequence[Step],
    folder: str,
    num_examples: int = 5,
    max_bad_rows: int = 0,
    say: Say = print,
) -> Cleaned:
    """Rows of `ds` (a `text` column, others are kept) after `steps`; the shards lie under `folder`, which every node
    sees and the caller removes.

    Raises DataError when more than `max_bad_rows` rows could not be read, with file and line of the first.
    """
    settle(ds)
    named = dict(zip(names(steps), steps, strict=True))
    privacy = tuple(step for step in steps if step.kind == "privacy")
    left = list(named.items())  # in order; each stage takes its part
    total, paths = ShardCounts(steps={}), list[str]()
    notes: dict[str, dict[str, int]] = {}
    verdict: Verdict | None = None
    for number, stage in enumerate(_with_end(steps)):
        model = left.pop(0) if stage.model is not None else None
        rows = tuple(left.pop(0) for _ in stage.rows)
        last = left.pop(0) if stage.last is not None else None
        pass_folder = os.path.join(folder, f"pass_{number}")
        work = Pass(pass_folder, rows, model, stage.last, num_examples, _put(verdict), privacy)
        made = _from_rows(ds, work) if number == 0 else _from_shards(paths, work)
        title = ", ".join(name for name, _ in ([model] if model else []) + list(rows)) or "reading"
        title = f"{verdict.step[0]}, {title}" if verdict is not None and rows else verdict.step[0] if verdict else title
        paths, counts = _collect(made, total, title, max_bad_rows, say)
        if number:
            shutil.rmtree(os.path.join(folder, f"pass_{number - 1}"), ignore_errors=True)
        verdict = None if last is None else _decide(last, paths, counts, say)
        if verdict is not None and verdict.notes:
            notes[verdict.step[0]] = verdict.notes
    for name, found in notes.items():
        total.steps[name].notes.update(found)
    total.steps = {name: total.steps[name] for name in named if name in total.steps}
    return Cleaned(tuple(steps), paths, total)


def _with_end(steps: Sequence[Step]) -> list[Any]:
    """The stages of `steps`; after a last step over all rows one more pass removes what it found."""
    from rayrlhf.data.cleaning.operators import Stage

    found = stages(steps)
    return found + [Stage((), None, None)] if found[-1].last is not None else found


def _put(verdict: Verdict | None) -> Any:
    import ray

    return None if verdict is None else ray.put(verdict)


def _from_rows(ds: Dataset, work: Pass) -> Dataset:
    # block by block: by a number of rows Ray Data would gather that many, however long they are
    return ds.map_batches(work.of_rows, batch_size=None, batch_format="pyarrow")


def _from_shards(paths: list[str], work: Pass) -> Dataset:
    listed = _shards(paths)
    if work.model is None:
        return listed.map_batches(work.of_shards, batch_size=1, batch_format="pyarrow")
    step: Any = work.model[1]
    return listed.map_batches(
        ModelPass, fn_constructor_args=(work,), batch_size=1, batch_format="pyarrow", concurrency=step.num_actors
    )


def _shards(paths: list[str], skipped: frozenset[int] = frozenset()) -> Dataset:
    """{shard, path} of each shard, some to a task where they are very many."""
    from ray import data

    items = [{"shard": number, "path": path} for number, path in enumerate(paths) if number not in skipped]
    return data.from_items(items, override_num_blocks=max(1, min(len(items), MAX_TASKS)))


def _collect(
    made: Dataset, total: ShardCounts, title: str, max_bad_rows: int, say: Say
) -> tuple[list[str], list[ShardCounts]]:
    """Run a pass: the paths of its shards and their counts, which are added to `total` as they come."""
    paths, counts = list[str](), list[ShardCounts]()
    total.rows, total.num_keys, total.lengths_out = 0, 0, type(total.lengths_out)()
    said = start = time.monotonic()
    for row in _rows(made):
        found: ShardCounts = pickle.loads(row["counts"])
        if row["path"]:
            paths.append(row["path"])
            counts.append(ShardCounts(num_keys=found.num_keys))
        total.add(found)
        if total.num_bad > max_bad_rows:
            raise DataError(too_many(total.bad, max_bad_rows))
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"clean: {title}: {total.rows:,} rows kept so far, {len(paths):,} shards")
    say(f"clean: {title}: {total.rows:,} rows kept, {time.monotonic() - start:.0f} s")
    return paths, counts


def _rows(ds: Dataset) -> Iterator[dict[str, Any]]:
    batch: Any
    for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def _decide(step: Named, paths: list[str], counts: list[ShardCounts], say: Say) -> Verdict:
    """Which rows, or lines and sentences of them, a step over all rows removes."""
    start = time.monotonic()
    num_keys = sum(count.num_keys for count in counts)
    skipped = frozenset(number for number, count in enumerate(counts) if not count.num_keys)
    empty = np.empty(0, np.int64)
    if not num_keys:
        return Verdict(step, empty, empty)
    groups = max(_MIN_GROUPS, num_keys // _KEYS_PER_GROUP)
    keyed = _shards(paths, skipped).map_batches(partial(_key_rows, groups=groups), batch_size=1, batch_format="pyarrow")
    grouped = keyed.groupby("group", num_partitions=min(groups, 64))
    if isinstance(step[1], NearDuplicates):
        by_number = dict(enumerate(paths))
        like = partial(minhash.pairs, paths=by_number, threshold=step[1].threshold)
        columns = _columns(grouped.map_groups(like, batch_format="pyarrow"), ("one", "other"))
        verdict = Verdict(step, minhash.to_drop(columns["one"], columns["other"], by_number))
    elif isinstance(step[1], Decontaminate):
        assert step[1].max_matches is not None
        shared = partial(decontaminate.contaminated, max_matches=step[1].max_matches)
        columns = _columns(grouped.map_groups(shared, batch_format="pyarrow"), ("id", "ngram"))
        verdict = decontaminate_verdict(step, columns["id"], columns["ngram"])
    else:
        columns = _columns(grouped.map_groups(duplicates.later_ones, batch_format="pyarrow"), ("id", "unit"))
        order = np.argsort(columns["id"], kind="stable")
        units = columns.get("unit")
        verdict = Verdict(step, columns["id"][order], None if units is None else units[order])
    say(f"clean: {step[0]}: {num_keys:,} keys compared, {time.monotonic() - start:.0f} s")
    return verdict


def decontaminate_verdict(step: Named, ids: Any, ngrams: Any) -> Verdict:
    """Each row once, with the smallest of its n-grams."""
    is_row = ids != decontaminate.COMMON
    order = np.lexsort((ngrams[is_row], ids[is_row]))
    rows, first = np.unique(ids[is_row][order], return_index=True)
    return Verdict(step, rows, ngrams[is_row][order][first], {"common_ngrams_ignored": int((~is_row).sum())})


def _key_rows(batch: pa.Table, groups: int) -> pa.Table:
    """The keys of shards as rows {group, key, id[, rank][, unit]}."""
    import pyarrow as pa

    tables = []
    for row in batch.to_pylist():
        key, place = (np.load(shards.keys_path(row["path"], name)) for name in ("key", "place"))
        columns = {
            "group": (key % np.uint64(groups)).astype(np.int64),
            "key": key,
            "id": shards.row_ids(row["shard"], place),
        }
        for name in ("rank", "unit"):
            file = shards.keys_path(row["path"], name)
            if os.path.exists(file):
                values = np.load(file)
                values = values if len(values) == len(key) else values[place]  # of bands the rank is the row's
                columns[name] = values.tolist() if values.dtype.kind == "U" else values
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _columns(ds: Dataset, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Columns of numbers as arrays; those that no batch has are left out, but for the first."""
    parts: dict[str, list[Any]] = {name: [] for name in wanted}
    batch: Any
    for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
        for name in wanted:
            if batch.num_rows and name in batch.column_names:
                parts[name].append(batch[name].to_numpy())
    found = {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays}
    return found if found else {name: np.empty(0, np.int64) for name in wanted}

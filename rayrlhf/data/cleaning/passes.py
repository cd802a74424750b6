"""One pass over rows, as tasks (or, with a model, actors) of Ray Data do it: steps, counts, the rows that stay.

A task takes some thousand rows, or some megabytes, writes those that stay as a shard and answers with counts; nothing
else leaves it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from rayrlhf.data.cleaning import decontaminate, duplicates, minhash, shards
from rayrlhf.data.cleaning.config import Decontaminate, NearDuplicates, Step, UnitDuplicates
from rayrlhf.data.cleaning.counts import Histogram, StepCount
from rayrlhf.data.cleaning.operators import built, protector
from rayrlhf.data.cleaning.reading import BAD, SHOWN_BAD
from rayrlhf.data.cleaning.verdict import Dropped, not_empty

if TYPE_CHECKING:
    import pyarrow as pa

_STEP: TypeAdapter[Any] = TypeAdapter(Step)
Named = tuple[str, Step]  # a step and its name in the counts


@dataclass
class ShardCounts:
    """What a task has to say of its rows."""

    steps: dict[str, StepCount] = field(default_factory=dict)
    rows_read: int = 0
    num_bad: int = 0
    bad: list[str] = field(default_factory=list)  # the first of them
    lengths_in: Histogram = field(default_factory=Histogram)
    lengths_out: Histogram = field(default_factory=Histogram)
    rows: int = 0
    num_keys: int = 0

    def add(self, other: ShardCounts) -> None:
        """Add another shard's."""
        for name, count in other.steps.items():
            if name in self.steps:
                self.steps[name].add(count)
            else:
                self.steps[name] = count
        self.rows_read += other.rows_read
        self.num_bad += other.num_bad
        self.bad = (self.bad + other.bad)[:SHOWN_BAD]
        self.rows += other.rows
        self.num_keys += other.num_keys
        self.lengths_in.add(other.lengths_in)
        self.lengths_out.add(other.lengths_out)


@dataclass(frozen=True)
class Verdict:
    """What a step over all rows decided: sorted row numbers; `units` are the lines or sentences of them that go, or
    the n-grams for which they go."""

    step: Named
    ids: Any
    units: Any = None
    notes: dict[str, int] = field(default_factory=dict)  # what else is to be reported


@dataclass(frozen=True)
class Pass:
    """Everything a task needs to know; small, for it travels with every task."""

    folder: str
    rows: tuple[Named, ...]
    model: Named | None
    last: Step | None
    num_examples: int
    verdict: Any = None  # a reference to a Verdict in the object store
    privacy: tuple[Step, ...] = ()  # through which examples go before they are kept

    @cached_property
    def _protect(self) -> Callable[[str], str] | None:
        return protector(self.privacy)

    def of_rows(self, block: pa.Table) -> Iterator[pa.Table]:
        """The first pass: rows as they were read, in shards of a bounded number of rows and bytes."""
        if block.num_rows:
            yield from map(self._of_piece, shards.pieces(block))

    def _of_piece(self, batch: pa.Table) -> pa.Table:
        counts = ShardCounts()
        if BAD in batch.column_names:
            problems = batch[BAD].to_pylist()
            bad = [problem for problem in problems if problem is not None]
            counts.num_bad, counts.bad = len(bad), [self._shown(problem) for problem in bad[:SHOWN_BAD]]
            batch = batch.filter(np.array([problem is None for problem in problems])).drop_columns([BAD])
        counts.rows_read = batch.num_rows
        for text in batch["text"].to_pylist():
            counts.lengths_in.see(len(text))
        return self._finish(batch, list(batch["text"].to_pylist()), counts)

    def _shown(self, problem: str) -> str:
        """What is said of a bad row, with the values in it protected; the file and line before them stay."""
        where, colon, what = problem.partition(": ")
        return problem if self._protect is None else where + colon + self._protect(what)

    def of_shards(self, batch: pa.Table, scorer: Any = None) -> pa.Table:
        """A later pass: rows {shard, path}, one a shard."""
        import pyarrow as pa
        import ray

        verdict = None if self.verdict is None else ray.get(self.verdict)
        made = []
        for row in batch.to_pylist():
            table, counts = shards.read(row["path"]), ShardCounts()
            texts: list[str | Dropped] = table["text"].to_pylist()
            if verdict is not None:
                texts = self._judged(texts, verdict, row["shard"], counts)
            if self.model is not None:
                texts = self._scored(texts, scorer, counts)
            made.append(self._finish(table, texts, counts))
        return pa.concat_tables(made)

    def _count(self, counts: ShardCounts, name: str) -> StepCount:
        return counts.steps.setdefault(name, StepCount(name, self.num_examples))

    def _judged(
        self, texts: Sequence[str | Dropped], verdict: Verdict, shard: int, counts: ShardCounts
    ) -> list[str | Dropped]:
        """`texts` after what a step over all rows decided."""
        name, step = verdict.step
        count, judged = self._count(counts, name), list(texts)
        mine = shards.of_shard(verdict.ids, shard)
        places = shards.places(verdict.ids[mine]).tolist()
        if isinstance(step, UnitDuplicates):
            removed: dict[int, set[int]] = {}
            for place, unit in zip(places, verdict.units[mine].tolist(), strict=True):
                removed.setdefault(place, set()).add(unit)
            for place, numbers in removed.items():
                left = duplicates.without_units(str(texts[place]), step.unit, numbers)
                judged[place] = left or Dropped("all_duplicates", f"every {step.unit} is elsewhere too")
        elif isinstance(step, Decontaminate):
            known = decontaminate.known_to(step.model_dump_json())
            for place, ngram in zip(places, verdict.units[mine].tolist(), strict=True):
                judged[place] = Dropped("contaminated", decontaminate.matches(str(texts[place]), known)[ngram])
        else:
            reason = "near_duplicate" if isinstance(step, NearDuplicates) else "duplicate"
            for place in places:
                judged[place] = Dropped(reason, "another row stays")
        judged = [not_empty(after) for after in judged]
        for before, after in zip(texts, judged, strict=True):
            count.see(str(before), after, self._protect)
        return judged

    def _scored(self, texts: Sequence[str | Dropped], scorer: Any, counts: ShardCounts) -> list[str | Dropped]:
        """`texts` after the model's judgement."""
        assert self.model is not None
        found, alive = list(texts), [place for place, text in enumerate(texts) if isinstance(text, str)]
        count = self._count(counts, self.model[0])
        for place, score in zip(alive, scorer([texts[place] for place in alive]), strict=True):
            found[place] = not_empty(score)
            count.see(str(texts[place]), found[place], self._protect)
        return found

    def _finish(self, table: pa.Table, texts: Sequence[str | Dropped], counts: ShardCounts) -> pa.Table:
        """The steps on single rows, and the shard of those that stay; returns {path, counts}."""
        import pyarrow as pa

        steps = [(self._count(counts, name), built(step.model_dump_json())) for name, step in self.rows]
        kept_places, kept = [], []
        for place, start in enumerate(texts):
            text = start
            for count, operator in steps:  # row by row, so that steps share a text's words
                if not isinstance(text, str):
                    break
                before, text = text, not_empty(operator(text))
                count.see(before, text, self._protect)
            if isinstance(text, str):
                kept_places.append(place)
                kept.append(text)
                counts.lengths_out.see(len(text))
        table = table.take(pa.array(kept_places, pa.int64()))
        table = table.set_column(table.schema.get_field_index("text"), "text", pa.array(kept, pa.string()))
        keys = {} if self.last is None or not kept else _keys(table, self.last)
        counts.rows, counts.num_keys = len(kept), len(keys.get("key", ()))
        path = shards.write(table, self.folder, keys)
        return pa.table({"path": [path], "counts": pa.array([pickle.dumps(counts)], pa.binary())})


class ModelPass:
    """An actor of Ray Data that holds the model of a pass."""

    def __init__(self, work: Pass) -> None:
        from rayrlhf.data.cleaning.causal_perplexity import Scorer

        assert work.model is not None
        step: Any = work.model[1]
        self.work, self.scorer = work, Scorer(step)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self.work.of_shards(batch, self.scorer)


def _keys(table: pa.Table, step: Step) -> dict[str, Any]:
    if isinstance(step, NearDuplicates):
        return minhash.keys(table, step)
    if isinstance(step, Decontaminate):
        return decontaminate.keys(table, step)
    return duplicates.keys(table, step)  # type: ignore[arg-type]

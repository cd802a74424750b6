"""Several sources of training rows as one ordered stream.

    source --encoded, counted--> shuffled passes, one after the other --cut--> the rows of each pass of the mixture
                                                                                     \
                                          all sources of a pass, shuffled together <--+

A source of which a pass takes a part goes on where the pass before stopped, so that all of its rows are used
before one is used again.  The stream depends on the rows, the list of sources and the seed alone.  Rows stay in
Ray's object store; the driver counts them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rayrlhf.data.config import DataConfig, MixedSource
from rayrlhf.data.mixing_rates import Part, names_of, parts
from rayrlhf.data.rows import content, digest
from rayrlhf.data.tally import Tally, report
from rayrlhf.data.token_rows import token_rows
from rayrlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

SOURCE = "source"  # a column: the number of a row's source
_KEY, _NUMBER = "_order", "_number"


@dataclass(frozen=True)
class Mixture:
    """The rows of each source, held in Ray's object store, and how many of them a pass takes."""

    parts: list[Part]
    rows: list[Dataset]
    metrics: dict[str, float]  # of what was dropped, by source

    @property
    def num_rows(self) -> int:
        """Rows of one pass."""
        return sum(part.quota for part in self.parts)

    def in_order(self, num_passes: int, seed: int, ignored: tuple[str, ...] = ()) -> Dataset:
        """`num_passes` passes over the mixture, each shuffled its own way, with a column `source`; lazily but for the
        order within each source.  `ignored`: as `rayrlhf.data.order.in_order`."""
        streams = [self._stream(number, num_passes, seed, ignored) for number in range(len(self.parts))]
        mixed = streams[0].union(*streams[1:]) if len(streams) > 1 else streams[0]
        return mixed.sort(_KEY).map_batches(_without_key, batch_format="pyarrow")

    def _stream(self, number: int, num_passes: int, seed: int, ignored: tuple[str, ...]) -> Dataset:
        """What one source gives to all passes, with the key of the order."""
        from rayrlhf.data import order

        part = self.parts[number]
        wanted = num_passes * part.quota
        shuffled = order.in_order(self.rows[number], -(-wanted // part.num_rows), seed, ignored).limit(wanted)
        key = partial(_keyed, part=part, number=number, seed=seed, ignored=ignored)
        return numbered(shuffled).map_batches(key, batch_format="pyarrow")


def load(
    data: DataConfig,
    kind: str,
    tokenizer: Any,
    complete: Callable[[Dataset], Dataset] = lambda ds: ds,
    with_extras: bool = False,
) -> Mixture:
    """Read and encode every source of `data`, of `kind` (text that is mixed in: `text`), each of which goes through
    `complete`.  `with_extras`: as `token_rows` has it.  DataError where the sources cannot give what `data` asks for
    (`mixing_rates.parts`)."""
    names, rows, metrics = names_of(data), list[Any](), dict[str, float]()
    for name, source in zip(names, data.sources, strict=False):
        tally = Tally()
        rows.append(complete(token_rows(source, kind, data, tokenizer, tally, with_extras)).materialize())
        metrics |= report(source.path, tally, data.max_dropped_share, f"{name}_")
    if data.pretraining is not None:
        tally, source = Tally(), MixedSource(path=data.pretraining.path, format=data.pretraining.format)
        plain = data.model_copy(update={"turns": "all", "row_format": "auto", "columns": {}})
        rows.append(token_rows(source, "text", plain, tokenizer, tally).materialize())
        metrics |= report(source.path, tally, data.max_dropped_share, f"{names[-1]}_")
    found = parts(data, [ds.count() for ds in rows])
    schemas = {name: str(ds.schema(fetch_if_missing=True)) for name, ds in zip(names, rows, strict=True)}
    first = found[0].name
    for name, schema in schemas.items():
        if schema != schemas[first]:
            raise DataError(
                f"the rows of {first} and {name} have columns of other types, so they cannot be mixed:\n"
                f"{schemas[first]}\n{schema}\nMake `prompt` strings, or messages with the same keys, in all sources"
            )
    return Mixture(found, rows, metrics)


def numbered(ds: Dataset) -> Dataset:
    """`ds` with a column of the rows' numbers in its order; runs it now, block by block in Ray's tasks."""
    import ray
    from ray import data

    length, number = ray.remote(_length), ray.remote(_numbered)
    blocks = ds.to_arrow_refs()
    lengths = ray.get([length.remote(block) for block in blocks])
    starts = itertools.accumulate(lengths, initial=0)
    given: Any = [
        number.remote(block, start) for block, start, size in zip(blocks, starts, lengths, strict=False) if size
    ]  # an empty block has no columns
    return data.from_arrow_refs(given)


def _length(block: pa.Table) -> int:
    return int(block.num_rows)


def _numbered(block: pa.Table, start: int) -> pa.Table:
    import pyarrow as pa

    return block.append_column(_NUMBER, pa.array(range(start, start + block.num_rows), pa.int64()))


def _keyed(batch: pa.Table, part: Part, number: int, seed: int, ignored: tuple[str, ...]) -> pa.Table:
    """The key orders by pass, then by a hash that differs for every repetition of a row."""
    import pyarrow as pa

    places = batch.column(_NUMBER).to_pylist()
    batch = batch.drop_columns([_NUMBER])
    known = batch.select([name for name in batch.column_names if name not in ignored])
    keys = []
    for place, row in zip(places, known.to_pylist(), strict=True):
        taken, repetition = place // part.quota, place // part.num_rows
        marks = [str(mark) for mark in (seed, taken, number, repetition)]
        keys.append(f"{taken:06d}{digest('mixture', *marks, content(row))}")
    numbers = pa.array([number] * len(batch), pa.int32())
    return batch.append_column(SOURCE, numbers).append_column(_KEY, pa.array(keys, pa.string()))


def _without_key(batch: pa.Table) -> pa.Table:
    return batch.drop_columns([_KEY])

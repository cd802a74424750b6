"""Prompts for RL: an endless-enough, ordered stream of padded batches."""

from __future__ import annotations

import itertools
import json
from array import array
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch

from rayrlhf.batches import Prompts, Rollouts, TextBatch
from rayrlhf.data.config import DataConfig, MixedSource
from rayrlhf.data.formats import EXTRAS
from rayrlhf.data.mixing_rates import described
from rayrlhf.data.mixture import load
from rayrlhf.data.order import by_content, in_order
from rayrlhf.data.tally import Tally, report
from rayrlhf.data.templates import Prompt
from rayrlhf.data.token_rows import token_rows
from rayrlhf.errors import DataError
from rayrlhf.score_function import ALL
from rayrlhf.training.microbatches import pad as pad_rows

if TYPE_CHECKING:
    from ray.data import Dataset


class Originals:
    """Prompts as their rows gave them (a string, or messages), by their token ids, which do not give them back; and
    the other columns of the rows that a reward function asks for.

    Holds those of the newest `num_batches` batches, and all that were held out.
    """

    def __init__(self, num_batches: int = 4, columns: tuple[str, ...] = ()) -> None:
        """`columns`: names, or `score_function.ALL`."""
        self.columns = columns
        self._held_out: dict[bytes, Prompt] = {}
        self._batches: deque[dict[bytes, Prompt]] = deque(maxlen=num_batches)
        self._held_out_rows: dict[tuple[int, bytes], str] = {}
        self._rows: deque[dict[tuple[int, bytes], str]] = deque(maxlen=num_batches)

    def add(self, ids: list[list[int]], prompts: list[Prompt], is_held_out: bool) -> None:
        """A batch's prompts with their token ids."""
        found = {_key(row): prompt for row, prompt in zip(ids, prompts, strict=True)}
        if is_held_out:
            self._held_out |= found
        else:
            self._batches.append(found)

    def add_columns(self, ids: list[list[int]], extras: list[str], first_index: int, is_held_out: bool) -> None:
        """The other columns, as JSON, of the rows of a batch of prompts, which are numbered from `first_index`."""
        numbered = enumerate(zip(ids, extras, strict=True), start=first_index)
        found = {(index, _key(row)): values for index, (row, values) in numbered}
        if is_held_out:
            self._held_out_rows |= found
        else:
            self._rows.append(found)

    def columns_of(self, rollouts: Rollouts) -> dict[str, list[Any]]:
        """A list of each of `columns`, a value a row; None where a row has no such column."""
        starts = (rollouts.lengths - rollouts.response_mask.sum(1)).tolist()
        numbered = zip(rollouts.prompt_index.tolist(), rollouts.tokens, starts, strict=True)
        rows = [json.loads(self._row(index, tokens[:start].tolist())) for index, tokens, start in numbered]
        names = sorted({name for row in rows for name in row}) if self.columns == ALL else self.columns
        return {name: [row.get(name) for row in rows] for name in names}

    def _row(self, index: int, ids: list[int]) -> str:
        key = (index, _key(ids))
        found = {rows[key] for rows in (self._held_out_rows, *self._rows) if key in rows}
        if not found:
            raise KeyError(f"no prompt {index} of {len(ids)} tokens {ids[:8]}... is among the newest batches")
        if len(found) > 1:
            raise DataError(
                f"the prompt {ids[:8]}... is held out and trained on with different columns ({' and '.join(found)}), "
                f"at the same place {index}: take it out of one of the files"
            )
        return found.pop()

    def find(self, ids: list[int]) -> Prompt:
        """The prompt of these ids; KeyError where it is of no batch that is held."""
        key = _key(ids)
        for batch in (self._held_out, *self._batches):
            if key in batch:
                return batch[key]
        raise KeyError(f"no prompt of {len(ids)} tokens {ids[:8]}... is among the newest batches")


def _key(ids: list[int]) -> bytes:
    return array("q", ids).tobytes()


def training_prompts(
    config: DataConfig,
    tokenizer: Any,
    batch_size: int,
    num_batches: int,
    seed: int,
    skip: int = 0,
    group_size: int = 1,
    originals: Originals | None = None,
    counts: dict[str, float] | None = None,
) -> Generator[Prompts]:
    """Batches `skip` .. `num_batches` - 1 of `batch_size` rows each, epoch after epoch, each shuffled anew;
    each prompt stands `group_size` times side by side, with a number, so a sampling seed, of its own each time.

    Depends on the rows and the seed alone, so a resumed run skips what it has used.  Only one batch
    is held here; `originals` learns of each as it comes, and `counts` gets metrics of the rows that were dropped; close
    it where it is left before its end.  Raises
    DataError when no prompt is within `config.max_tokens`.
    """
    ordered = _ordered(config, "prompts", tokenizer, num_batches * batch_size // group_size, seed, originals, counts)
    stream = _batches(ordered, batch_size, tokenizer, group_size, originals)
    return _part(stream, skip, num_batches)


def _ordered(
    config: DataConfig,
    kind: str,
    tokenizer: Any,
    num_rows: int,
    seed: int,
    originals: Originals | None = None,
    counts: dict[str, float] | None = None,
) -> Dataset:
    """As many passes over the rows of `config.train` as give `num_rows`."""
    with_extras = originals is not None and bool(originals.columns)
    if config.is_mixed:
        mixture = load(config, kind, tokenizer, with_extras=with_extras)
        num_passes = -(-num_rows // mixture.num_rows)
        print("\n".join(f"{kind}: {line}" for line in described(mixture.parts, num_passes)), flush=True)
        if counts is not None:
            counts.update(mixture.metrics)
        return mixture.in_order(num_passes, seed)
    [source], tally = config.sources, Tally()
    rows = token_rows(source, kind, config, tokenizer, tally, with_extras)
    count = rows.count()
    metrics = report(source.path, tally, config.max_dropped_share)
    if counts is not None:
        counts.update(metrics)
    if not count:
        what = "prompt" if kind == "prompts" else kind
        raise DataError(f"{source.path}: no {what} has at most max_tokens={config.max_tokens} tokens; raise it")
    return in_order(rows, -(-num_rows // count), seed, ties=(EXTRAS,))


def held_out_prompts(config: DataConfig, tokenizer: Any, count: int, originals: Originals | None = None) -> Prompts:
    """The first `count` prompts of `config.validation` in the order of their hash; DataError when there are fewer."""
    if config.validation is None:
        raise DataError("no held-out prompts: set prompts.validation to a file that no training prompt is in")
    tally, source = Tally(), MixedSource(path=config.validation)
    with_extras = originals is not None and bool(originals.columns)
    ordered = by_content(token_rows(source, "prompts", config, tokenizer, tally, with_extras), ties=(EXTRAS,))
    found = list(_batches(ordered.limit(count), count, tokenizer, originals=originals, is_held_out=True))
    if not found:
        raise DataError(
            f"{config.validation} has fewer than the {count} held-out prompts asked for (of at most "
            f"max_tokens={config.max_tokens} tokens): ask for fewer, or give more"
        )
    report(config.validation, tally, config.max_dropped_share)
    return found[0]


def pad(ids: list[list[int]], first_index: int, pad_id: int) -> Prompts:
    """Right-padded prompts, numbered from `first_index`."""
    lengths = torch.tensor([len(row) for row in ids])
    tokens = torch.full((len(ids), int(lengths.max())), pad_id)
    for row, values in enumerate(ids):
        tokens[row, : len(values)] = torch.tensor(values)
    return Prompts(tokens, lengths, torch.arange(first_index, first_index + len(ids)))


def text_batches(
    config: DataConfig, tokenizer: Any, batch_size: int, num_batches: int, seed: int, skip: int = 0
) -> Generator[TextBatch]:
    """Batches `skip` .. `num_batches` - 1 of `batch_size` texts of `config.train`, as `training_prompts`."""
    rows = _ordered(config, "text", tokenizer, num_batches * batch_size, seed)
    stream: Any = rows.iter_batches(batch_size=batch_size, batch_format="pyarrow", drop_last=True)
    for batch in itertools.islice(stream, skip, num_batches):
        tokens, lengths = pad_rows(batch.column("input_ids").to_pylist())
        mask = pad_rows(batch.column("loss_mask").to_pylist())[0].bool()
        mask[:, 0] = False  # nothing predicts the first token
        yield TextBatch(tokens, lengths, mask)


def _part(stream: Generator[Prompts], first: int, last: int) -> Generator[Prompts]:
    with closing(stream):
        yield from itertools.islice(stream, first, last)


def _batches(
    rows: Dataset,
    batch_size: int,
    tokenizer: Any,
    group_size: int = 1,
    originals: Originals | None = None,
    is_held_out: bool = False,
) -> Generator[Prompts]:
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    stream: Any = rows.iter_batches(batch_size=batch_size // group_size, batch_format="pyarrow", drop_last=True)
    for number, batch in enumerate(stream):
        given = batch.column("prompt_ids").to_pylist()
        if originals is not None:
            originals.add(given, batch.column("prompt").to_pylist(), is_held_out)
        ids = [prompt for prompt in given for _ in range(group_size)]
        if originals is not None and originals.columns:
            extras = [values for values in batch.column(EXTRAS).to_pylist() for _ in range(group_size)]
            originals.add_columns(ids, extras, number * batch_size, is_held_out)
        yield pad(ids, number * batch_size, pad_id)

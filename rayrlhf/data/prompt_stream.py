"""Prompts for RL: an endless-enough, ordered stream of padded batches."""

from __future__ import annotations

import itertools
from array import array
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch

from rayrlhf.batches import Prompts, TextBatch
from rayrlhf.data.config import DataConfig
from rayrlhf.data.mixing_rates import described
from rayrlhf.data.mixture import load
from rayrlhf.data.order import by_content, in_order
from rayrlhf.data.sources import read
from rayrlhf.data.templates import Prompt
from rayrlhf.data.tokenize import encoded
from rayrlhf.errors import DataError
from rayrlhf.training.microbatches import pad as pad_rows

if TYPE_CHECKING:
    from ray.data import Dataset


class Originals:
    """Prompts as their rows gave them (a string, or messages), by their token ids, which do not give them back.

    Holds those of the newest `num_batches` batches, and all that were held out.
    """

    def __init__(self, num_batches: int = 4) -> None:
        self._held_out: dict[bytes, Prompt] = {}
        self._batches: deque[dict[bytes, Prompt]] = deque(maxlen=num_batches)

    def add(self, ids: list[list[int]], prompts: list[Prompt], is_held_out: bool) -> None:
        """A batch's prompts with their token ids."""
        found = {_key(row): prompt for row, prompt in zip(ids, prompts, strict=True)}
        if is_held_out:
            self._held_out |= found
        else:
            self._batches.append(found)

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
) -> Generator[Prompts]:
    """Batches `skip` .. `num_batches` - 1 of `batch_size` rows each, epoch after epoch, each shuffled anew;
    each prompt stands `group_size` times side by side, with a number, so a sampling seed, of its own each time.

    Depends on the rows and the seed alone, so a resumed run skips what it has used.  Only one batch
    is held here; `originals` learns of each as it comes; close it where it is left before its end.  Raises
    DataError when no prompt is within `config.max_tokens`.
    """
    ordered = _ordered(config, "prompts", tokenizer, num_batches * batch_size // group_size, seed)
    stream = _batches(ordered, batch_size, tokenizer, group_size, originals)
    return _part(stream, skip, num_batches)


def _ordered(config: DataConfig, kind: str, tokenizer: Any, num_rows: int, seed: int) -> Dataset:
    """As many passes over the rows of `config.train` as give `num_rows`."""
    if config.is_mixed:
        mixture = load(config, kind, tokenizer)
        num_passes = -(-num_rows // mixture.num_rows)
        print("\n".join(f"{kind}: {line}" for line in described(mixture.parts, num_passes)), flush=True)
        return mixture.in_order(num_passes, seed)
    path = config.sources[0].path
    rows = encoded(read(path, config.format, kind), kind, tokenizer, config.max_tokens, config.too_long)
    count = rows.count()
    if not count:
        what = "prompt" if kind == "prompts" else kind
        raise DataError(f"{path}: no {what} has at most max_tokens={config.max_tokens} tokens; raise it")
    return in_order(rows, -(-num_rows // count), seed)


def held_out_prompts(config: DataConfig, tokenizer: Any, count: int, originals: Originals | None = None) -> Prompts:
    """The first `count` prompts of `config.validation` in the order of their hash; DataError when there are fewer."""
    if config.validation is None:
        raise DataError("no held-out prompts: set prompts.validation to a file that no training prompt is in")
    rows = read(config.validation, config.format, "prompts")
    ordered = by_content(encoded(rows, "prompts", tokenizer, config.max_tokens, config.too_long))
    found = list(_batches(ordered.limit(count), count, tokenizer, originals=originals, is_held_out=True))
    if not found:
        raise DataError(
            f"{config.validation} has fewer than the {count} held-out prompts asked for (of at most "
            f"max_tokens={config.max_tokens} tokens): ask for fewer, or give more"
        )
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
        yield pad(ids, number * batch_size, pad_id)

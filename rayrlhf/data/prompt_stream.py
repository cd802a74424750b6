"""Prompts for RL: an endless-enough, ordered stream of padded batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from rayrlhf.batches import Prompts
from rayrlhf.data.config import DataConfig
from rayrlhf.data.order import by_content, in_order
from rayrlhf.data.sources import read
from rayrlhf.data.tokenize import encoded
from rayrlhf.errors import DataError

if TYPE_CHECKING:
    from ray.data import Dataset


def training_prompts(
    config: DataConfig, tokenizer: Any, batch_size: int, num_batches: int, seed: int, skip: int = 0
) -> Iterator[Prompts]:
    """Batches `skip` .. `num_batches` - 1 of `batch_size` prompts each, epoch after epoch, each shuffled anew.

    Depends on the rows and the seed alone, so a resumed run skips what it has used.  Only one batch
    is held here.  Raises DataError when no prompt is within `config.max_tokens`.
    """
    rows = encoded(
        read(config.train, config.format, "prompts"), "prompts", tokenizer, config.max_tokens, config.too_long
    )
    count = rows.count()
    if not count:
        raise DataError(f"{config.train}: no prompt has at most max_tokens={config.max_tokens} tokens; raise it")
    epochs = -(-num_batches * batch_size // count)
    stream = _batches(in_order(rows, epochs, seed), batch_size, tokenizer)
    return itertools.islice(stream, skip, num_batches)


def held_out_prompts(config: DataConfig, tokenizer: Any, count: int) -> Prompts:
    """The first `count` prompts of `config.validation` in the order of their hash; DataError when there are fewer."""
    if config.validation is None:
        raise DataError("no held-out prompts: set prompts.validation to a file that no training prompt is in")
    rows = read(config.validation, config.format, "prompts")
    ordered = by_content(encoded(rows, "prompts", tokenizer, config.max_tokens, config.too_long))
    found = list(_batches(ordered.limit(count), count, tokenizer))
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


def _batches(rows: Dataset, batch_size: int, tokenizer: Any) -> Iterator[Prompts]:
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    stream: Any = rows.iter_batches(batch_size=batch_size, batch_format="pyarrow", drop_last=True)
    for number, batch in enumerate(stream):
        yield pad(batch.column("prompt_ids").to_pylist(), number * batch_size, pad_id)

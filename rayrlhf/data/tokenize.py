"""From checked rows to token ids, as functions over Ray Data batches.

    text               input_ids, loss_mask        loss on every token but the first
    prompt_completion  input_ids, loss_mask        loss on the completion and its end token
    preference         chosen_ids, rejected_ids    prompt, completion, end token; `prompt_length` of the prompt
    labelled           input_ids                   prompt, completion, end token; `prompt_length`, and the bool `label`
    prompts            prompt_ids                  and the `prompt` itself, for samples

ids are int32, masks bool, both lists of a row's own length.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from rayrlhf.data.context import settle
from rayrlhf.data.rows import Row
from rayrlhf.data.templates import encode_completion, encode_prompt, encode_text

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

logger = logging.getLogger(__name__)


def encoded(ds: Dataset, kind: str, tokenizer: Any, max_tokens: int, too_long: str = "drop") -> Dataset:
    """`ds` of rows of `kind` as token ids, lazily, in the same order; no row is over `max_tokens`.

    The tokenizer travels to the tasks with the function, so no folder need be seen by every node.
    """
    settle(ds)
    encode = partial(encode_batch, kind=kind, tokenizer=tokenizer, max_tokens=max_tokens, too_long=too_long)
    return ds.map_batches(encode, batch_format="pyarrow")


def encode_batch(batch: pa.Table, kind: str, tokenizer: Any, max_tokens: int, too_long: str) -> pa.Table:
    """One batch; warns how many of its rows were dropped or cut."""
    import pyarrow as pa

    rows, num_dropped, num_cut = [], 0, 0
    for row in batch.to_pylist():
        encoded_row = encode_row(row, kind, tokenizer)
        longest = max(len(encoded_row[name]) for name in _LENGTHS[kind])
        if longest > max_tokens:
            if too_long == "drop" or not _has_room(row, kind, tokenizer, max_tokens):
                num_dropped += 1
                continue
            encoded_row = {
                name: value[:max_tokens] if isinstance(value, list) else value for name, value in encoded_row.items()
            }
            num_cut += 1
        rows.append(encoded_row)
    if num_dropped or num_cut:
        logger.warning(
            "%s: of %d rows %d dropped and %d cut, longer than max_tokens=%d",
            kind, batch.num_rows, num_dropped, num_cut, max_tokens,
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_schema(kind, batch))


def encode_row(row: Row, kind: str, tokenizer: Any) -> Row:
    """The token columns of one row of `kind`, whatever its length."""
    if kind == "text":
        ids = encode_text(tokenizer, row["text"])
        return {"input_ids": ids, "loss_mask": [False] + [True] * (len(ids) - 1)}
    prompt = encode_prompt(tokenizer, row["prompt"])
    if kind == "prompts":
        return {"prompt_ids": prompt, "prompt": row["prompt"]}
    if kind == "prompt_completion":
        completion = encode_completion(tokenizer, row["completion"])
        return {
            "input_ids": prompt + completion,
            "loss_mask": [False] * len(prompt) + [True] * len(completion),
        }
    if kind == "labelled":
        ids = prompt + encode_completion(tokenizer, row["completion"])
        return {"input_ids": ids, "prompt_length": len(prompt), "label": row["label"]}
    return {
        "chosen_ids": prompt + encode_completion(tokenizer, row["chosen"]),
        "rejected_ids": prompt + encode_completion(tokenizer, row["rejected"]),
        "prompt_length": len(prompt),
    }


_LENGTHS = {
    "text": ("input_ids",),
    "prompt_completion": ("input_ids",),
    "preference": ("chosen_ids", "rejected_ids"),
    "labelled": ("input_ids",),
    "prompts": ("prompt_ids",),
}


def _has_room(row: Row, kind: str, tokenizer: Any, max_tokens: int) -> bool:
    """Whether cutting leaves a whole prompt and something of a response."""
    return kind == "text" or (kind != "prompts" and len(encode_prompt(tokenizer, row["prompt"])) < max_tokens)


def _schema(kind: str, batch: pa.Table) -> pa.Schema:
    import pyarrow as pa

    fields = [(name, pa.list_(pa.int32())) for name in _LENGTHS[kind]]
    if kind in ("text", "prompt_completion"):
        fields.append(("loss_mask", pa.list_(pa.bool_())))
    if kind in ("preference", "labelled"):
        fields.append(("prompt_length", pa.int32()))
    if kind == "labelled":
        fields.append(("label", pa.bool_()))
    if kind == "prompts":
        fields.append(("prompt", batch.schema.field("prompt").type))
    return pa.schema(fields)

"""From checked rows to token ids, as functions over Ray Data batches.

    text               input_ids, loss_mask        loss on every token but the first
    prompt_completion  input_ids, loss_mask        loss on the completion and its end token
    preference         chosen_ids, rejected_ids    prompt, completion, end token; `prompt_length` of the prompt
    preference_margin  the same                    and the number `margin`
    ranking            ranked_ids                  a list of such texts, best first; `prompt_length`
    scored             input_ids                   prompt, completion, end token; `prompt_length`, the number `score`
    labelled           input_ids                   the same, and the bool `label`
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
from rayrlhf.errors import ConfigError

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
        if max(map(len, _texts(encoded_row, kind))) > max_tokens:
            if too_long == "drop" or not _has_room(row, kind, tokenizer, max_tokens):
                num_dropped += 1
                continue
            encoded_row = {name: _cut(value, max_tokens) for name, value in encoded_row.items()}
            num_cut += 1
        rows.append(encoded_row)
    if num_dropped or num_cut:
        logger.warning(
            "%s: of %d rows %d dropped and %d cut, longer than max_tokens=%d",
            kind, batch.num_rows, num_dropped, num_cut, max_tokens,
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_schema(kind, batch))


def fitting(ds: Dataset, microbatch_tokens: int) -> Dataset:
    """Encoded ranking rows as they are; ConfigError, when it is reached, at one whose texts do not fit a
    microbatch together."""
    return ds.map_batches(partial(_fitting, microbatch_tokens=microbatch_tokens), batch_format="pyarrow")


def _fitting(batch: pa.Table, microbatch_tokens: int) -> pa.Table:
    for texts in batch.column("ranked_ids").to_pylist():
        longest = max(map(len, texts))
        if len(texts) * longest > microbatch_tokens:
            raise ConfigError(
                f"a row ranks {len(texts)} texts of up to {longest} tokens, which take {len(texts) * longest} in one "
                f"forward pass, more than train.microbatch_tokens={microbatch_tokens}: raise it, lower "
                "data.max_tokens, or rank fewer texts in a row"
            )
    return batch


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
    more = {name: row[name] for name in _CARRIED[kind]}
    if kind == "ranking":
        texts = [prompt + encode_completion(tokenizer, text) for text in row["ranked"]]
        return {"ranked_ids": texts, "prompt_length": len(prompt)} | more
    if kind in ("labelled", "scored"):
        ids = prompt + encode_completion(tokenizer, row["completion"])
        return {"input_ids": ids, "prompt_length": len(prompt)} | more
    return {
        "chosen_ids": prompt + encode_completion(tokenizer, row["chosen"]),
        "rejected_ids": prompt + encode_completion(tokenizer, row["rejected"]),
        "prompt_length": len(prompt),
    } | more


_IDS = {
    "text": ("input_ids",),
    "prompt_completion": ("input_ids",),
    "preference": ("chosen_ids", "rejected_ids"),
    "preference_margin": ("chosen_ids", "rejected_ids"),
    "ranking": ("ranked_ids",),
    "scored": ("input_ids",),
    "labelled": ("input_ids",),
    "prompts": ("prompt_ids",),
}
# kinds with a `prompt_length`, and the columns of theirs that pass through
_CARRIED: dict[str, tuple[str, ...]] = {
    "preference": (),
    "preference_margin": ("margin",),
    "ranking": (),
    "scored": ("score",),
    "labelled": ("label",),
}


def _texts(row: Row, kind: str) -> list[list[int]]:
    """All token lists of an encoded row."""
    if kind == "ranking":
        return list(row["ranked_ids"])
    return [row[name] for name in _IDS[kind]]


def _cut(value: Any, max_tokens: int) -> Any:
    """The first `max_tokens` of a column's text, or of each of its texts; other values as they are."""
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], list):
        return [text[:max_tokens] for text in value]
    return value[:max_tokens]


def _has_room(row: Row, kind: str, tokenizer: Any, max_tokens: int) -> bool:
    """Whether cutting leaves a whole prompt and something of a response."""
    return kind == "text" or (kind != "prompts" and len(encode_prompt(tokenizer, row["prompt"])) < max_tokens)


def _schema(kind: str, batch: pa.Table) -> pa.Schema:
    import pyarrow as pa

    text = pa.list_(pa.int32())
    fields = [(name, pa.list_(text) if kind == "ranking" else text) for name in _IDS[kind]]
    if kind in ("text", "prompt_completion"):
        fields.append(("loss_mask", pa.list_(pa.bool_())))
    if kind in _CARRIED:
        fields.append(("prompt_length", pa.int32()))
        fields += [(name, pa.bool_() if name == "label" else pa.float64()) for name in _CARRIED[kind]]
    if kind == "prompts":
        fields.append(("prompt", batch.schema.field("prompt").type))
    return pa.schema(fields)

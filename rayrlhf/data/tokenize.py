"""From checked rows to token ids, as functions over Ray Data batches.

    text               input_ids, loss_mask        loss on every token but the first
    prompt_completion  input_ids, loss_mask        loss on the completion and its end token; of rows that hold
                                                   `messages`, on every answer and its end (see conversation.py)
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
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from rayrlhf.data.context import settle
from rayrlhf.data.conversation import encode_conversation
from rayrlhf.data.formats import EXTRAS
from rayrlhf.data.rows import Row, shortened
from rayrlhf.data.tally import CUT, DROPPED, EMPTY, EQUAL, KEPT, READ, TOO_LONG, Tally
from rayrlhf.data.templates import encode_completion, encode_prompt, encode_text
from rayrlhf.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

logger = logging.getLogger(__name__)


def encoded(
    ds: Dataset,
    kind: str,
    tokenizer: Any,
    max_tokens: int,
    too_long: str = "drop",
    turns: str = "all",
    tally: Tally | None = None,
) -> Dataset:
    """`ds` of rows of `kind` as token ids, lazily, in the same order; no row is over `max_tokens`.

    `too_long`, `turns`: as in `DataConfig`.  `tally` counts what became of the rows; without one a warning says what
    was dropped.  The tokenizer travels to the tasks with the function, so no folder need be seen by every node.
    """
    settle(ds)
    encode = partial(
        encode_batch,
        kind=kind,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        too_long=too_long,
        turns=turns,
        tally=tally,
    )
    return ds.map_batches(encode, batch_format="pyarrow")


def encode_batch(
    batch: pa.Table,
    kind: str,
    tokenizer: Any,
    max_tokens: int,
    too_long: str,
    turns: str = "all",
    tally: Tally | None = None,
) -> pa.Table:
    """One batch.  DataError at a row that is too long where `too_long` is "error"."""
    import pyarrow as pa

    given, rows, fates = batch.to_pylist(), list[Row](), Counter[str]()
    for row in given:
        fate, encoded_row = _encoded(row, kind, tokenizer, max_tokens, too_long, turns)
        fates[fate] += 1
        if encoded_row is not None:
            rows.append(encoded_row)
    counts = dict(fates) | {READ: len(given), KEPT: len(rows)}
    if tally is not None:
        tally.add(counts, given)
    elif len(rows) < len(given) or fates[CUT]:
        reasons = ", ".join(f"{fates[fate]} {why}" for fate, why in DROPPED.items() if fates[fate])
        logger.warning(
            "%s: of %d rows %d dropped and %d cut, max_tokens=%d%s",
            kind, len(given), len(given) - len(rows), fates[CUT], max_tokens, reasons and f" ({reasons})",
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_schema(kind, batch))


def _encoded(row: Row, kind: str, tokenizer: Any, max_tokens: int, too_long: str, turns: str) -> tuple[str, Row | None]:
    """What becomes of a row, and its token columns where it stays."""
    if _is_empty(row, kind):
        return EMPTY, None
    if kind == "ranking" and len(row["ranked"]) < 2:
        return EQUAL, None
    found, fate = encode_row(row, kind, tokenizer, turns), KEPT
    excess = max(map(len, _texts(found, kind))) - max_tokens
    if excess > 0:
        if too_long == "error":
            raise DataError(
                f"a {kind} row has {max_tokens + excess} tokens, more than max_tokens={max_tokens}: raise it, or set "
                f"too_long to drop, truncate or truncate_prompt. The row: {shortened(row)}"
            )
        length = _prompt_length(found, kind)
        start = int(_texts(found, kind)[0][0] == tokenizer.bos_token_id)  # the start token stays
        if too_long == "truncate_prompt" and kind != "text" and length - start > excess:
            found, fate = _cut_beginning(found, start, excess), CUT
        elif too_long != "drop" and length < max_tokens and (too_long == "truncate" or kind == "text"):
            found, fate = {name: _cut(value, max_tokens) for name, value in found.items()}, CUT
        else:
            return TOO_LONG, None
    if "chosen_ids" in found and found["chosen_ids"] == found["rejected_ids"]:
        return EQUAL, None
    return fate, found


def fates(rows: list[Row], kind: str, tokenizer: Any, max_tokens: int, too_long: str, turns: str) -> Counter[str]:
    """What would become of some rows of `kind`: KEPT (also where they are cut), or one of DROPPED."""
    found: Counter[str] = Counter()
    for row in rows:
        fate, _ = _encoded(row, kind, tokenizer, max_tokens, too_long, turns)
        found[KEPT if fate == CUT else fate] += 1
    return found


def _is_empty(row: Row, kind: str) -> bool:
    """Whether a row has nothing to learn to write."""
    if kind == "preference" or kind == "preference_margin":
        return not row["chosen"].strip()
    if kind != "prompt_completion":
        return False
    if "messages" not in row:
        return not row["completion"].strip()
    learnt = row["messages"][row["num_given"] :]
    return any(turn["role"] == "assistant" and not turn["content"].strip() for turn in learnt)


def _prompt_length(found: Row, kind: str) -> int:
    """Tokens of an encoded row before the first that counts; of a prompt itself all."""
    if kind == "prompts":
        return len(found["prompt_ids"])
    if "prompt_length" in found:
        return int(found["prompt_length"])
    return 0 if kind == "text" else int(found["loss_mask"].index(True))


def _cut_beginning(found: Row, start: int, excess: int) -> Row:
    """An encoded row without `excess` tokens of its prompt after the first `start`."""
    cut = {name: _without(value, start, excess) for name, value in found.items()}
    return cut | ({"prompt_length": found["prompt_length"] - excess} if "prompt_length" in found else {})


def _without(value: Any, start: int, excess: int) -> Any:
    if not isinstance(value, list) or (value and isinstance(value[0], dict)):
        return value
    if value and isinstance(value[0], list):
        return [text[:start] + text[start + excess :] for text in value]
    return value[:start] + value[start + excess :]


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


def encode_row(row: Row, kind: str, tokenizer: Any, turns: str = "all") -> Row:
    """The token columns of one row of `kind`, whatever its length."""
    if kind == "text":
        ids = encode_text(tokenizer, row["text"])
        return {"input_ids": ids, "loss_mask": [False] + [True] * (len(ids) - 1)}
    if "messages" in row:
        ids, mask = encode_conversation(tokenizer, row["messages"], row["num_given"], turns == "last")
        return {"input_ids": ids, "loss_mask": mask}
    prompt = encode_prompt(tokenizer, row["prompt"])
    if kind == "prompts":
        extras = {EXTRAS: row[EXTRAS]} if EXTRAS in row else {}
        return {"prompt_ids": prompt, "prompt": row["prompt"]} | extras
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
        fields += [(EXTRAS, pa.string())] if EXTRAS in batch.schema.names else []
    return pa.schema(fields)

"""What the jobs of the three supervised stages check alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rayrlhf.data.config import DataConfig
from rayrlhf.data.rows import Row
from rayrlhf.data.tally import DROPPED, KEPT, TOO_LONG
from rayrlhf.errors import ConfigError, DataError
from rayrlhf.training.config import TrainConfig

LOSS_ONLY = ("eval/loss",)
PAIR_METRICS = ("eval/loss", "eval/accuracy", "eval/margin")
CHECKED_CHATS = 20  # rows that are rendered before anything starts
MIN_DEMONSTRATIONS = 16  # fewer say little of a mean


def check(
    kind: str,
    data: DataConfig,
    train: TrainConfig,
    context: int,
    metrics: tuple[str, ...] = LOSS_ONLY,
    texts_per_row: int = 1,
    tokenizer: Callable[[], Any] | None = None,
    times: int = 1,
) -> None:
    """Data are there and of `kind`; lengths fit `context` and a microbatch, of which a row takes the room of
    `texts_per_row`; early stopping looks at one of `metrics`; `tokenizer()` as in `check_data`; there are enough rows,
    each of which is learnt from `times` in a pass.  Raises UserError."""
    if data.max_tokens > context:
        raise ConfigError(
            f"data.max_tokens={data.max_tokens} is longer than the model's context of {context} tokens: "
            f"set data.max_tokens={context} or less"
        )
    longest = data.max_tokens * texts_per_row
    if longest > train.microbatch_tokens:
        raise ConfigError(
            f"the longest row takes {longest} tokens (data.max_tokens={data.max_tokens}"
            f"{', twice for a pair' if texts_per_row == 2 else ''}), more than "
            f"train.microbatch_tokens={train.microbatch_tokens}: raise it or lower data.max_tokens"
        )
    if train.early_stopping and data.validation is None:
        raise ConfigError("train.early_stopping needs held-out rows: set data.validation")
    if train.early_stopping and train.early_stopping.metric not in metrics:
        raise ConfigError(
            f"train.early_stopping.metric is {train.early_stopping.metric!r}, which no validation gives; "
            f"there are {', '.join(metrics)}"
        )
    found = check_data(data, kind, tokenizer=tokenizer)
    if tokenizer is None:
        return
    enough = partial(check_enough, kind=kind, data=data, tokenizer=tokenizer())
    if isinstance(data.train, str) and data.packing is None and data.pretraining is None:
        enough(data.train, found[data.train], wanted=train.minibatch, key="train.minibatch", times=times * train.epochs)
    if data.validation is not None and data.packing is None:
        enough(data.validation, found[data.validation], wanted=1, key="")


def check_data(
    data: DataConfig, kind: str, prefix: str = "data", tokenizer: Callable[[], Any] | None = None
) -> dict[str, list[Row]]:
    """Every source is there and its first rows, which are returned by path, are of `kind`; what is said of the rows has
    an effect; those with messages also go through the chat template of `tokenizer()`.  Raises UserError."""
    from rayrlhf.data import sources
    from rayrlhf.data.tokenize import encode_row

    if data.packing is not None and kind != "text":
        raise ConfigError(
            f"{prefix}.packing cuts texts and puts them together, which is for pretraining; {kind} rows stay whole. "
            "Leave it out: nothing is computed of padding anyway"
        )
    if data.pretraining is not None and kind != "prompt_completion":
        other = {"text": f"list its path under {prefix}.train", "prompts": "set policy.pretraining"}
        raise ConfigError(
            f"{prefix}.pretraining mixes text into the prompts and completions of SFT, not into {kind} rows: "
            f"{other.get(kind, 'leave it out')}"
        )
    if data.turns != "all" and kind != "prompt_completion":
        raise ConfigError(
            f"{prefix}.turns={data.turns} is for conversations in SFT, and has no effect on {kind} rows: leave it out"
        )
    found = {
        source.path: sources.check(source.path, *data.reading(source, kind), max_bad_rows=data.max_bad_rows)
        for source in data.all_sources
    }
    if data.pretraining is not None:
        how = data.pretraining.format or data.format
        sources.check(data.pretraining.path, how, "text", max_bad_rows=data.max_bad_rows)
    chats = {
        path: [row for row in rows if "messages" in row or isinstance(row.get("prompt"), list)]
        for path, rows in found.items()
    }
    has_turns = any("messages" in row for rows in chats.values() for row in rows)
    if data.turns != "all" and not has_turns and any(found.values()):
        raise ConfigError(
            f"{prefix}.turns={data.turns} has no effect: {' + '.join(found)} has no conversations, but prompts with "
            "one answer"
        )
    if tokenizer is not None and any(chats.values()):
        made = tokenizer()
        for row in (row for rows in chats.values() for row in rows[:CHECKED_CHATS]):
            encode_row(row, kind, made, data.turns)
    return found


def check_enough(
    path: str, rows: list[Row], *, kind: str, data: DataConfig, tokenizer: Any, wanted: int, key: str, times: int = 1
) -> None:
    """DataError where `path` has no more than these first `rows`, and they, each `times`, are fewer than `wanted`
    (which `key` asks for) without those that are too long, have no answer or are pairs of equal texts."""
    from rayrlhf.data.sources import SAMPLE_ROWS
    from rayrlhf.data.tokenize import fates

    if not rows or len(rows) + data.max_bad_rows >= SAMPLE_ROWS:
        return  # of a hub, or there may be more: they are counted when they are read
    counts = fates(rows, kind, tokenizer, data.max_tokens, data.too_long, data.turns)
    count = counts[KEPT] * times
    if count >= wanted:
        return
    lost = "".join(f", {counts[fate]} {why}" for fate, why in DROPPED.items() if counts[fate])
    limit = f" (data.max_tokens={data.max_tokens})" if counts[TOO_LONG] else ""
    passes = f" in {times} passes" if times > 1 else ""
    too_few = f"fewer than {key}={wanted}. Lower {key}" if key else "and one is needed"
    raise DataError(
        f"{path} has {len(rows)} rows{lost}{limit}: that makes {count}{passes}, {too_few}"
        f"{', mend the rows' if lost else ''}{', raise data.max_tokens' if limit else ''} or give more rows"
    )


def data_parents(data: DataConfig, role: str = "data", held_out: str = "validation") -> dict[str, str]:
    """What the rows come from, by role: the stage directory that holds them, or the path itself.

    Of several sources `role`_1, `role`_2, ..., and `pretraining` for text that is mixed in."""
    paths = [source.path for source in data.sources]
    found = {role: paths[0]} if isinstance(data.train, str) else {f"{role}_{n}": p for n, p in enumerate(paths, 1)}
    found |= {"pretraining": data.pretraining.path} if data.pretraining else {}
    found |= {held_out: data.validation} if data.validation else {}
    return {name: stage_of(path) for name, path in found.items()}


def stage_of(path: str) -> str:
    """The stage directory that holds the rows at `path`, or `path` itself."""
    return path.split("/state/")[0]

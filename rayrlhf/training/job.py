"""What the jobs of the three supervised stages check alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayrlhf.data.config import DataConfig
from rayrlhf.errors import ConfigError
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
) -> None:
    """Data are there and of `kind`; lengths fit `context` and a microbatch, of which a row takes the room of
    `texts_per_row`; early stopping looks at one of `metrics`; `tokenizer()` as in `check_rows`.  Raises UserError."""
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
    check_rows(kind, data, tokenizer)


def check_rows(kind: str, data: DataConfig, tokenizer: Callable[[], Any] | None = None) -> None:
    """The first rows of both paths are of `kind`, and what is said of them has an effect; those with messages also
    go through the chat template of `tokenizer()`.  Raises UserError."""
    from rayrlhf.data import sources
    from rayrlhf.data.tokenize import encode_row

    if data.turns != "all" and kind != "prompt_completion":
        raise ConfigError(
            f"turns={data.turns} is for conversations in SFT, and has no effect on {kind} rows: leave it out"
        )
    for path in filter(None, (data.train, data.validation)):
        rows = sources.check(path, data.format, kind, data.row_format, data.columns)
        if data.turns != "all" and rows and not any("messages" in row for row in rows):
            raise ConfigError(
                f"turns={data.turns} has no effect: {path} has no conversations, but prompts with one answer"
            )
        chats = [row for row in rows if "messages" in row or isinstance(row.get("prompt"), list)]
        if tokenizer is not None and chats:
            made = tokenizer()
            for row in chats[:CHECKED_CHATS]:
                encode_row(row, kind, made, data.turns)


def data_parents(data: DataConfig) -> dict[str, str]:
    """What the rows come from, by role: the stage directory that holds them, or the path itself."""
    paths = {"data": data.train} | ({"validation": data.validation} if data.validation else {})
    return {role: stage_of(path) for role, path in paths.items()}


def stage_of(path: str) -> str:
    """The stage directory that holds the rows at `path`, or `path` itself."""
    return path.split("/state/")[0]

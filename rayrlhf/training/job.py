"""What the jobs of the three supervised stages check alike."""

from __future__ import annotations

from rayrlhf.data.config import DataConfig
from rayrlhf.errors import ConfigError
from rayrlhf.training.config import TrainConfig

LOSS_ONLY = ("eval/loss",)
PAIR_METRICS = ("eval/loss", "eval/accuracy", "eval/margin")
MIN_DEMONSTRATIONS = 16  # fewer say little of a mean


def check(
    kind: str,
    data: DataConfig,
    train: TrainConfig,
    context: int,
    metrics: tuple[str, ...] = LOSS_ONLY,
    texts_per_row: int = 1,
) -> None:
    """Data are there and of `kind`; lengths fit `context` and a microbatch, of which a row takes the room of
    `texts_per_row`; early stopping looks at one of `metrics`.  Raises UserError."""
    from rayrlhf.data import sources

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
    sources.check(data.train, data.format, kind)
    if data.validation is not None:
        sources.check(data.validation, data.format, kind)


def data_parents(data: DataConfig) -> dict[str, str]:
    """What the rows come from, by role: the stage directory that holds them, or the path itself."""
    paths = {"data": data.train} | ({"validation": data.validation} if data.validation else {})
    return {role: stage_of(path) for role, path in paths.items()}


def stage_of(path: str) -> str:
    """The stage directory that holds the rows at `path`, or `path` itself."""
    return path.split("/state/")[0]

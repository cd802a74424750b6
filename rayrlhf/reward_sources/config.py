"""What happens where a reward function gives no score."""

from __future__ import annotations

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.errors import ConfigError

MAX_DEADLINE_SHARE = 0.9  # of call_deadline_s that scoring may take, so that its error comes before that of the call


class RewardFailuresConfig(Section):
    """A response fails whose score is not a finite number, or on which the function raises, hangs or dies."""

    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds a response; a batch has as many times that as it has responses. null: a batch has most of "
        "call_deadline_s, and then the run stops",
    )
    score: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="what a failed response gets; the function must then score a response alone as it would among "
        "others. null: the run stops at the first",
    )
    max_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="of the responses that an actor scores at once; the run stops where more fail",
    )

    @model_validator(mode="after")
    def _share_needs_a_score(self) -> RewardFailuresConfig:
        if self.score is None and self.max_share != 0.1:
            raise ValueError(f"max_share={self.max_share:g} has no effect without a score: set score, or leave it out")
        return self

    def check_time(self, num_responses: int, call_deadline_s: float) -> None:
        """ConfigError where `num_responses`, tried together and then one by one, may outlast the call."""
        if self.timeout_s is None:
            return
        longest = 2 * self.timeout_s * num_responses
        if longest > MAX_DEADLINE_SHARE * call_deadline_s:
            raise ConfigError(
                f"reward_failures.timeout_s={self.timeout_s:g} gives {num_responses} responses of one actor "
                f"{longest / 2:g} s, and as much again to find those that fail: set call_deadline_s to at least "
                f"{longest / MAX_DEADLINE_SHARE:.0f}, not {call_deadline_s:g}, or lower the timeout"
            )

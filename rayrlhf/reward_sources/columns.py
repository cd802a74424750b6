"""The other columns of a prompt's row, such as its reference answer, for a reward function that asks for them.

    prompts' rows --> Originals (driver) --> WithColumns --> RewardGroup, a part to each replica --> function

Rollouts are tensors and carry no such values: a row's are found again by its number and its prompt's tokens.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from rayrlhf.batches import Rollouts, Scores
from rayrlhf.data import sources
from rayrlhf.data.config import DataConfig
from rayrlhf.data.formats import EXTRAS
from rayrlhf.data.prompt_stream import Originals
from rayrlhf.errors import ConfigError
from rayrlhf.score_function import columns_of


class ReadsColumns(Protocol):
    """A reward that is given columns beside the rollouts."""

    async def scores(self, rollouts: Rollouts, columns: dict[str, list[Any]] | None = None) -> Scores: ...


class WithColumns:
    """`roles.Reward` over one that is given the columns of the rollouts' rows."""

    def __init__(self, reward: ReadsColumns, originals: Originals) -> None:
        self.reward, self.originals = reward, originals

    async def scores(self, rollouts: Rollouts) -> Scores:
        return await self.reward.scores(rollouts, self.originals.columns_of(rollouts))


def asked_columns(function: str | None) -> tuple[str, ...]:
    """What `Originals` is to keep for a reward function; none without one."""
    return columns_of(function)[0] if function else ()


def check_columns(function: str | None, data: DataConfig) -> None:
    """ConfigError where a reward function needs a column that no prompt of the first rows has."""
    needed = columns_of(function)[1] if function else ()
    for source in data.all_sources if needed else ():
        rows = sources.check(source.path, *data.reading(source, "prompts"), with_extras=True)
        found = {name for row in rows for name in json.loads(row[EXTRAS])}
        missing = [name for name in needed if name not in found]
        if rows and missing:
            others = ", ".join(sorted(found)) or "no others"
            raise ConfigError(
                f"reward_function={function} needs {' and '.join(missing)} beside prompts and responses, and no row "
                f"of {source.path} has such a column; there are {others}. Name one with "
                f"prompts.columns.{missing[0]}=..., or give the parameter a default"
            )

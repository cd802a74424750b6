"""What became of the rows that stages read, and what the sources of a mixture really gave."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rayrlhf.data.tally import DROPPED
from rayrlhf.evaluation.run_files import Row, Stage, last_values

_FATE = re.compile(r"data/(?!mixture_)(.*)rows_(read|kept|cut|dropped_.+)")
_MIXTURE = re.compile(r"data/mixture_(rows|tokens|row_share|token_share)_(.+)")


@dataclass
class RowsRead:
    """One source of a stage, by the prefix of its metrics ("" where there is one)."""

    stage: str
    source: str
    read: float = 0.0
    kept: float = 0.0
    cut: float = 0.0
    dropped: dict[str, float] = field(default_factory=dict)  # why -> rows


@dataclass
class SourceGave:
    """One source of a stage's mixture: rows and tokens trained on, and their shares."""

    stage: str
    source: str
    rows: float = 0.0
    tokens: float = 0.0
    row_share: float = 0.0
    token_share: float = 0.0


def data_metrics(stage: Stage, rows: list[Row]) -> dict[str, float]:
    """The last values of the `data/*` metrics of a stage: of its log, and over them of its manifest."""
    logged = last_values(rows, "data")
    return logged | {name: v for name, v in stage.manifest["metrics"].items() if name.startswith("data/")}


def rows_read(stage: str, metrics: dict[str, float]) -> list[RowsRead]:
    """Rows read, kept, cut and dropped, by source."""
    found: dict[str, RowsRead] = {}
    for name, value in metrics.items():
        fate = _FATE.fullmatch(name)
        if fate is None:
            continue
        source, what = fate[1].rstrip("_"), fate[2]
        entry = found.setdefault(source, RowsRead(stage, source))
        if what.startswith("dropped_"):
            if value:
                why = what.removeprefix("dropped_")
                entry.dropped[DROPPED.get(why, why)] = value
        else:
            setattr(entry, what, value)
    return [found[source] for source in sorted(found)]


def mixture(stage: str, metrics: dict[str, float]) -> list[SourceGave]:
    """What each source gave; none for a stage without a mixture."""
    found: dict[str, SourceGave] = {}
    for name, value in metrics.items():
        match = _MIXTURE.fullmatch(name)
        if match is not None:
            setattr(found.setdefault(match[2], SourceGave(stage, match[2])), match[1], value)
    return [found[source] for source in sorted(found)]

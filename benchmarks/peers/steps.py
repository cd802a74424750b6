"""What a side of a comparison says of itself: how long each step took and how many real tokens it had."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Steps:
    """Seconds and real (not padding) tokens of each optimizer or RL step, in order."""

    seconds: list[float]
    tokens: list[int]
    more: dict[str, float] = field(default_factory=dict)  # what else is known of the run

    def after(self, warm_up: int) -> Steps:
        """Without the first steps, which pay for imports and first calls."""
        return Steps(self.seconds[warm_up:], self.tokens[warm_up:], self.more)

    @property
    def tokens_per_s(self) -> float:
        return sum(self.tokens) / sum(self.seconds)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def write(self, path: str) -> None:
        Path(path).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: str | Path) -> Steps:
        return cls(**json.loads(Path(path).read_text()))

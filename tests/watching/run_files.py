"""Writes the files of runs for the tests of watching."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayrlhf.checkpoint import StageWriter


def row(stage: str, step: int, time_s: float, total: int | None = None, **metrics: Any) -> dict[str, Any]:
    """A row of metrics.jsonl; `a__b` in place of a/b."""
    given = {"stage": stage, "step": step, "time_s": time_s}
    return given | ({} if total is None else {"total_steps": total}) | named(**metrics)


def named(**metrics: Any) -> dict[str, Any]:
    return {name.replace("__", "/"): value for name, value in metrics.items()}


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def add_stage(run: Path | str, name: str, step: int, is_final: bool = True, seconds: float = 12.5) -> None:
    StageWriter(f"{run}/{name}", step).finish(name, {}, {}, {}, is_final=is_final, seconds=seconds)

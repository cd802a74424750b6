"""What an operator says of a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Dropped(NamedTuple):
    """The row goes: `reason` is counted (one word), `detail` says by what value."""

    reason: str
    detail: str


Operator = Callable[[str], str | Dropped]  # the text as it goes on, or why it does not


def not_empty(after: str | Dropped) -> str | Dropped:
    """What a step says, and Dropped where it leaves nothing of a text."""
    return Dropped("empty", "nothing is left") if isinstance(after, str) and not after.strip() else after


def above(name: str, value: float, most: float | None) -> Dropped | None:
    """Dropped for too much of `name`; None where it is within `most`, or nothing is asked."""
    return Dropped(name, f"{name} {value:.3g} > {most:g}") if most is not None and value > most else None


def below(name: str, value: float, least: float | None) -> Dropped | None:
    """Dropped for too little of `name`."""
    return Dropped(name, f"{name} {value:.3g} < {least:g}") if least is not None and value < least else None

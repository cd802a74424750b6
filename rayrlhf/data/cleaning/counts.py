"""What each step did: rows in and out, characters changed, examples; kept a shard and added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rayrlhf.data.cleaning.hashing import text_hash
from rayrlhf.data.cleaning.verdict import Dropped

SHOWN = 300  # characters of a text in an example
_AROUND = 40  # characters of an example before the first difference
_LOOKED_AT = 20_000  # of a text that is longer, as many around an example; so many that no cut number is ever shown
_WITHHELD = "(not kept: personal data)"

Protect = Callable[[str], str]


@dataclass
class StepCount:
    """Counts of one step.  Examples are those with the smallest hash, so they do not depend on the shards."""

    name: str
    num_examples: int
    rows_in: int = 0
    rows_out: int = 0
    rows_changed: int = 0
    chars_in: int = 0
    chars_out: int = 0
    chars_changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: dict[str, int] = field(default_factory=dict)  # what a step over all rows has to say besides
    dropped_examples: list[dict[str, Any]] = field(default_factory=list)
    changed_examples: list[dict[str, Any]] = field(default_factory=list)

    def see(self, before: str, after: str | Dropped, protect: Protect | None = None) -> None:
        """Count one row; what is kept of it as an example goes through `protect`, which takes personal data out."""
        self.rows_in += 1
        self.chars_in += len(before)
        if isinstance(after, Dropped):
            self.dropped[after.reason] += 1
            shown = partial(_dropped, before, after, protect)
            _offer(self.dropped_examples, before, shown, self.num_examples)
            return
        self.rows_out += 1
        self.chars_out += len(after)
        if after != before:
            self.rows_changed += 1
            self.chars_changed += changed_characters(before, after)
            shown = partial(difference, before, after, protect)
            _offer(self.changed_examples, before, shown, self.num_examples)

    def add(self, other: StepCount) -> None:
        """Add another shard's counts of the same step."""
        for name in ("rows_in", "rows_out", "rows_changed", "chars_in", "chars_out", "chars_changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        for name in ("dropped_examples", "changed_examples"):
            merged = sorted(getattr(self, name) + getattr(other, name), key=lambda example: example["hash"])
            setattr(self, name, merged[: self.num_examples])

    def as_dict(self) -> dict[str, Any]:
        """For the data card."""
        plain = {key: value for key, value in vars(self).items() if key != "num_examples"}
        plain["dropped"] = dict(sorted(self.dropped.items()))
        for name in ("dropped_examples", "changed_examples"):
            plain[name] = [{k: v for k, v in example.items() if k != "hash"} for example in plain[name]]
        return plain


def changed_characters(before: str, after: str) -> int:
    """Characters inserted, deleted or replaced, as far as counts of characters tell: the bag distance, a lower
    bound of the edit distance (Bartolini et al. 2002)."""
    old, new = Counter(before), Counter(after)
    return max((old - new).total(), (new - old).total())


def difference(before: str, after: str, protect: Protect | None = None) -> dict[str, Any]:
    """Both texts from a little before where they part; where they part in personal data alone, that after."""
    same = _same(before, after)
    if protect is not None:
        low = max(0, same - _LOOKED_AT // 2)
        before, after = (protect(text[low : low + _LOOKED_AT]) for text in (before, after))
        same = same - low if before == after else _same(before, after)
    start = max(0, same - _AROUND)
    old = before[start : start + SHOWN]
    return {"before": _WITHHELD if before == after else old, "after": after[start : start + SHOWN]}


def _dropped(text: str, why: Dropped, protect: Protect | None) -> dict[str, Any]:
    if protect is None:
        protect = str
    return {"reason": why.reason, "detail": protect(why.detail)[:SHOWN], "text": protect(text[:_LOOKED_AT])[:SHOWN]}


def _same(one: str, other: str) -> int:
    """How many first characters are alike."""
    shorter = min(len(one), len(other))
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), shorter)


class Histogram:
    """Counts of lengths, by powers of two."""

    def __init__(self, bins: dict[int, int] | None = None) -> None:
        self.bins: Counter[int] = Counter(bins or {})

    def see(self, length: int) -> None:
        """Count one length."""
        self.bins[length.bit_length()] += 1

    def add(self, other: Histogram) -> None:
        """Add another's counts."""
        self.bins.update(other.bins)

    def as_list(self) -> list[dict[str, int]]:
        """{"from", "to", "rows"} of each bin from the shortest to the longest, both ends inclusive."""
        if not self.bins:
            return []
        return [
            {"from": (1 << bits) >> 1, "to": max(0, (1 << bits) - 1), "rows": self.bins[bits]}
            for bits in range(min(self.bins), max(self.bins) + 1)
        ]


def _offer(examples: list[dict[str, Any]], text: str, shown: Callable[[], dict[str, Any]], most: int) -> None:
    mark = f"{text_hash(text):016x}"
    if len(examples) < most or (most and mark < examples[-1]["hash"]):
        examples.append(shown() | {"hash": mark})
        examples.sort(key=lambda one: one["hash"])
        del examples[most:]

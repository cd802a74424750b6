"""How many rows of each source make one pass over a mixture: exact arithmetic on counts, no rows.

With the size s_i of a source (its rows, at most `max_rows`, times its `epochs`) its share is

    p_i = w_i / sum(w)                            by weights
    p_i = s_i^(1/T) / sum(s^(1/T))                by size (Raffel et al. 2020, section 3.5.2)

and a pass takes at most s_i of its rows.  Without a wanted length it is as long as all shares allow.
docs/equations.md has the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from rayrlhf.data.config import DataConfig, MixedSource, MixingConfig
from rayrlhf.errors import DataError


@dataclass(frozen=True)
class Part:
    """One source of a mixture: how many rows it has, how many a pass asks of it and takes."""

    name: str
    path: str
    num_rows: int  # that it has
    share: Fraction  # that was asked for
    limit: int  # rows that one pass can take, repeats counted
    quota: int  # rows that one pass takes

    def epochs_of(self, num_passes: int) -> float:
        """How often each of its rows is seen, on average."""
        return num_passes * self.quota / self.num_rows


def parts(data: DataConfig, counts: Sequence[int]) -> list[Part]:
    """The sources of `data`, which have `counts` rows, text that is mixed in last.

    Raises DataError for a source without a row, one whose share rounds to none, a cap that caps nothing, and
    one that has not the rows for its share where `mixing.short` is error.
    """
    names, mixing = names_of(data), data.mixing or MixingConfig()
    for name, count in zip(names, counts, strict=True):
        if not count:
            raise DataError(f"data source {name} gives no row of at most data.max_tokens={data.max_tokens} tokens")
    limits = [_size(source, count) for source, count in zip(data.sources, counts, strict=False)]
    shares = _shares([source.weight for source in data.sources], limits, mixing.temperature)
    total = mixing.rows or int(min(limit / share for limit, share in zip(limits, shares, strict=True)))
    quotas = _apportioned(shares, total)
    quotas = _within(quotas, shares, limits, mixing, names)
    if data.pretraining is not None:
        text, count = data.pretraining, counts[-1]
        share = Fraction(str(text.share))
        wanted = round(sum(quotas) * share / (1 - share))
        limits, shares = [*limits, text.epochs * count], [*(s * (1 - share) for s in shares), share]
        if wanted > limits[-1] and mixing.short == "error":
            raise _too_short(names[-1], wanted, limits[-1])
        quotas.append(min(wanted, limits[-1]))
    paths = [source.path for source in data.sources] + ([data.pretraining.path] if data.pretraining else [])
    for name, share, quota in zip(names, shares, quotas, strict=True):
        if not quota:
            raise DataError(
                f"data source {name} has a share of {float(share):.2g}, which is less than one of the {sum(quotas)} "
                "rows of a pass: raise its weight or share, or leave it out"
            )
    return [Part(*one) for one in zip(names, paths, counts, shares, limits, quotas, strict=True)]


def names_of(data: DataConfig) -> list[str]:
    """What the sources are called in metrics: the last part of their path, numbered where that is not enough."""
    paths = [source.path for source in data.sources] + ([data.pretraining.path] if data.pretraining else [])
    stems = [path.rstrip("/").rsplit("/", 1)[-1].split(".")[0].replace(":", "_") or "source" for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}_{n}" for n, stem in enumerate(stems, start=1)]


def described(mixed: Sequence[Part], num_passes: int) -> list[str]:
    """A line a source: what it gives to training, and where that is not the share that was asked for."""
    total = sum(part.quota for part in mixed)
    lines = []
    for part in mixed:
        got = part.quota / total
        note = ""
        if abs(part.quota - total * part.share) > 1:
            note = (
                f"; asked for {float(part.share):.1%}, its epochs allow no more"
                if got < part.share
                else (f"; asked for {float(part.share):.1%}, it stands in for others")
            )
        elif part.quota == part.limit and any(other.quota < other.limit for other in mixed):
            note = "; used up, so the pass ends here"
        lines.append(
            f"{part.name}: {part.quota:,} of {part.num_rows:,} rows a pass ({got:.1%}), each "
            f"{part.epochs_of(num_passes):.3g} times in {num_passes} pass(es){note}"
        )
    return lines


def _size(source: MixedSource, count: int) -> int:
    return source.epochs * min(count, source.max_rows or count)  # one cap for all may be above the smaller ones


def _shares(weights: Sequence[float | None], sizes: Sequence[int], temperature: float) -> list[Fraction]:
    """Shares that add up to exactly 1."""
    given = [Fraction(str(weight)) for weight in weights if weight is not None]
    raw = given or [_flattened(size, temperature) for size in sizes]
    return [one / sum(raw) for one in raw]


def _flattened(size: int, temperature: float) -> Fraction:
    if temperature == 1:
        return Fraction(size)
    return Fraction(1) if math.isinf(temperature) else Fraction(size ** (1 / temperature))


def _apportioned(shares: Sequence[Fraction], total: int) -> list[int]:
    """`total` rows by shares, rounded by largest remainders, so that they add up."""
    exact = [share / sum(shares) * total for share in shares]
    quotas = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: (quotas[n] - exact[n], n))
    for n in by_remainder[: total - sum(quotas)]:
        quotas[n] += 1
    return quotas


def _within(
    quotas: list[int], shares: list[Fraction], limits: list[int], mixing: MixingConfig, names: Sequence[str]
) -> list[int]:
    """Quotas within the limits; what one source lacks goes to the others by their shares, as far as they can."""
    total, full = sum(quotas), set[int]()
    while True:
        over = [n for n, quota in enumerate(quotas) if quota > limits[n]]
        if over and mixing.short == "error":
            raise _too_short(names[over[0]], quotas[over[0]], limits[over[0]])
        if not over:
            return quotas
        full |= set(over)
        open_ones = [n for n in range(len(quotas)) if n not in full]
        rest = total - sum(limits[n] for n in full)
        spread = _apportioned([shares[n] for n in open_ones], max(0, rest)) if open_ones else []
        quotas = [limits[n] if n in full else spread[open_ones.index(n)] for n in range(len(quotas))]


def _too_short(name: str, wanted: int, limit: int) -> DataError:
    return DataError(
        f"data source {name} is to give {wanted} rows a pass, but with its epochs it has {limit}: raise its epochs, "
        "lower its weight or share or data.mixing.rows, or let its share fall with data.mixing.short=lower"
    )

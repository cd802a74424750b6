"""Rows that cannot be read: refused, or left out and counted up to a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayrlhf.errors import DataError

if TYPE_CHECKING:
    from rayrlhf.data.tally import Tally

SHOWN = 5


@dataclass(frozen=True)
class BadRows:
    """What becomes of rows that cannot be read; `tally` counts them where `limit` is above 0."""

    limit: int = 0
    tally: Tally | None = None

    def add(self, where: str, why: str, key: str | None = None) -> None:
        """One more, at a file and place; what is counted once is the place, or the `key` where several rows share it.
        DataError when they are more than the limit."""
        said = f"{where}: {why}"
        bad = [said] if not self.limit or self.tally is None else self.tally.add_bad(key or where, said)
        check_bad(bad, self.limit)


NONE = BadRows()


def check_bad(bad: Sequence[str], limit: int) -> None:
    """DataError where `bad`, what is said of each bad row (of the first ones), are more than `limit`."""
    if len(bad) <= limit:
        return
    if not limit:
        raise DataError(bad[0])
    shown = "\n  ".join(bad[:SHOWN])
    raise DataError(
        f"more than data.max_bad_rows={limit} rows cannot be read:\n  {shown}\nMend the files, or raise "
        "data.max_bad_rows to leave such rows out"
    )

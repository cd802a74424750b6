"""What became of the rows of a path, counted where they are encoded: in Ray's tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache
from typing import Any
from uuid import uuid4

from rayrlhf.data.bad_rows import SHOWN
from rayrlhf.data.rows import digest
from rayrlhf.errors import DataError

READ, KEPT, CUT, TOO_LONG, EQUAL, EMPTY, BAD = "read", "kept", "cut", "too_long", "equal", "empty", "bad"
DROPPED = {
    BAD: "that cannot be read",
    TOO_LONG: "longer than max_tokens",
    EQUAL: "pairs of equal texts",
    EMPTY: "without an answer",
}


class _Counts:
    """An actor, one for all tallies of a driver, since each would be a process that imports Ray Data; each batch counts
    once, however often its task is tried."""

    def __init__(self) -> None:
        self.batches: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)  # by tally
        self.bad: dict[str, dict[str, str]] = defaultdict(dict)  # what is said of each bad row, by tally and place

    def add(self, tally: str, batch: str, counts: dict[str, int]) -> None:
        self.batches[tally][batch] = counts

    def add_bad(self, tally: str, where: str, said: str) -> list[str]:
        self.bad[tally][where] = said
        return list(self.bad[tally].values())

    def total(self, tally: str) -> dict[str, int]:
        bad = Counter({BAD: len(self.bad[tally]), READ: len(self.bad[tally])})
        return dict(sum(map(Counter, self.batches[tally].values()), bad))

    def all_bad(self, tally: str) -> list[str]:
        return list(self.bad[tally].values())


@cache
def _counts(session: str, job: str) -> Any:
    """The actor of a driver, which is this process as long as it is connected to that session as that job.

    On the driver's own node, without which there is no run: the loss of another one must not take the counts along.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": f"row-counts-{uuid4().hex[:8]}", "scheduling_strategy": here}
    return ray.remote(num_cpus=0)(_Counts).options(**options).remote()


class Tally:
    """Counts of one pass over a dataset, made by its tasks and read by the driver after it.

    A dataset that is computed twice is counted twice.
    """

    def __init__(self) -> None:
        import ray

        here = ray.get_runtime_context()
        self._actor = _counts(here.get_session_name(), here.get_job_id())
        self._name = uuid4().hex

    def add(self, counts: dict[str, int], rows: list[Any]) -> None:
        """Called in a task, for a batch of `rows`; returns when it is counted."""
        import ray

        task = ray.get_runtime_context().get_task_id() or ""
        batch = digest(task, repr(rows[:1]), repr(rows[-1:]), repr(counts))
        ray.get(self._actor.add.remote(self._name, batch, counts))

    def add_bad(self, where: str, said: str) -> list[str]:
        """Called in a task, for a row that cannot be read; returns what is said of all of them so far.  The same place
        counts once, however often it is read."""
        import ray

        found: list[str] = ray.get(self._actor.add_bad.remote(self._name, where, said))
        return found

    def bad(self) -> list[str]:
        """What is said of each row that cannot be read."""
        import ray

        found: list[str] = ray.get(self._actor.all_bad.remote(self._name))
        return found

    def counts(self) -> dict[str, int]:
        """Rows by what became of them: READ is the sum of KEPT and of all of DROPPED; CUT is a part of KEPT."""
        import ray

        found: dict[str, int] = ray.get(self._actor.total.remote(self._name))
        return {name: found.get(name, 0) for name in (READ, KEPT, CUT, *DROPPED)}


def summary(path: str, counts: dict[str, int]) -> str:
    """One line of what was dropped and cut; "" where nothing was."""
    lost = [f"{counts[name]:,} dropped ({why})" for name, why in DROPPED.items() if counts[name]]
    lost += [f"{counts[CUT]:,} cut to max_tokens"] if counts[CUT] else []
    return f"{path}: of {counts[READ]:,} rows {', '.join(lost)}" if lost else ""


def metrics(counts: dict[str, int], prefix: str = "") -> dict[str, float]:
    """`data/rows_read`, `data/rows_dropped_too_long` and so on, with `prefix` after the slash."""
    named = {f"rows_dropped_{name}" if name in DROPPED else f"rows_{name}": float(n) for name, n in counts.items()}
    return {f"data/{prefix}{name}": value for name, value in named.items()}


def report(path: str, tally: Tally, max_share: float | None, prefix: str = "") -> dict[str, float]:
    """Print the summary and the first rows that cannot be read, check the share, and give the metrics."""
    counts = tally.counts()
    line = summary(path, counts)
    if line:
        print("\n  ".join([line, *(tally.bad()[:SHOWN] if counts[BAD] else ())]), flush=True)
    check_share(path, counts, max_share)
    return metrics(counts, prefix)


def check_share(path: str, counts: dict[str, int], max_share: float | None) -> None:
    """DataError where more than `max_share` of the rows were dropped; None allows any."""
    dropped = counts[READ] - counts[KEPT]
    if max_share is not None and dropped > max_share * counts[READ]:
        raise DataError(
            f"{summary(path, counts)}: that is more than data.max_dropped_share={max_share:g}. Mend the rows, raise "
            "data.max_tokens, or raise data.max_dropped_share"
        )

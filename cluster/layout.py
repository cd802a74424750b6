"""From a layout to a plan: which actor lies in which bundle, and whether the cluster has room.

Pure: resources are numbers, nodes are dicts as `ray.nodes()` reports them ({"CPU": 8.0, ...}).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.config import LayoutConfig
from rayrlhf.errors import ConfigError, ResourceError

_GIB = 2**30
_EPS = 1e-6  # Ray counts resources in steps of 1e-4; sums of fractions such as 5 * 0.2 must still fit


@dataclass(frozen=True)
class PoolPlan:
    """`bundles` equal bundles of one placement group."""

    name: str
    bundles: int
    cpus: float
    gpus: float
    strategy: str


@dataclass(frozen=True)
class RolePlan:
    """One role's actors; cpus, gpus and memory_gib (an estimate) are of each one of them."""

    name: str
    ranks: int
    cpus: float
    gpus: float
    memory_gib: float
    threads: int
    pool: PoolPlan
    bundles: tuple[int, ...]  # rank -> index of its bundle in the pool


def plan(layout: LayoutConfig, memory_gib: Mapping[str, float] | None = None) -> list[RolePlan]:
    """Every role's place; `memory_gib` is each role's estimate for one actor (see cluster.memory).

    Raises ConfigError when a pool's bundles have no room for the roles on it.
    """
    pools = {name: PoolPlan(name, p.bundles, p.cpus, p.gpus, p.strategy) for name, p in layout.pools.items()}
    free = {name: [[p.cpus, p.gpus] for _ in range(p.bundles)] for name, p in layout.pools.items()}
    plans = []
    for name, role in layout.roles.items():
        pool = pools[role.pool]
        bundles = []
        for rank in range(role.ranks):
            # starting at bundle `rank` spreads a role evenly over its pool
            order = [(rank + i) % pool.bundles for i in range(pool.bundles)]
            fitting = [b for b in order if _holds(free[pool.name][b], (role.cpus, role.gpus))]
            if not fitting:
                raise ConfigError(
                    f"no bundle of pool {pool.name} ({pool.bundles} x {pool.cpus:g} CPU, {pool.gpus:g} GPU) "
                    f"has room for {name}-{rank} ({role.cpus:g} CPU, {role.gpus:g} GPU) beside the roles "
                    f"before it; raise layout.pools.{pool.name}.bundles, cpus or gpus, or lower "
                    f"layout.roles.{name}.ranks, cpus or gpus"
                )
            free[pool.name][fitting[0]][0] -= role.cpus
            free[pool.name][fitting[0]][1] -= role.gpus
            bundles.append(fitting[0])
        memory = (memory_gib or {}).get(name, 0.0)
        plans.append(RolePlan(name, role.ranks, role.cpus, role.gpus, memory, role.threads, pool, tuple(bundles)))
    return plans


def worker_plan(
    name: str, ranks: int, cpus: float, gpus: float = 0.0, memory_gib: float = 0.0, threads: int = 1
) -> RolePlan:
    """The plan of a job whose equal workers each take a bundle of their own (Ray Train)."""
    pool = PoolPlan(name, ranks, cpus, gpus, "PACK")
    return RolePlan(name, ranks, cpus, gpus, memory_gib, threads, pool, tuple(range(ranks)))


def pools_of(plan: Sequence[RolePlan]) -> list[PoolPlan]:
    """The plan's pools, hardest to place first: the order in which they are reserved."""
    pools = {role.pool.name: role.pool for role in plan}

    def hardness(pool: PoolPlan) -> tuple[bool, float, float, int]:
        return pool.strategy.startswith("STRICT"), pool.gpus, pool.cpus, pool.bundles

    return sorted(pools.values(), key=hardness, reverse=True)


def fits(plan: Sequence[RolePlan], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ResourceError, with asked and available, unless all pools fit on the nodes together."""
    _, unplaced = places(plan, nodes)
    if unplaced is not None:
        pool = unplaced
        raise ResourceError(
            f"the cluster has no room for pool {pool.name}: {pool.bundles} bundles of {pool.cpus:g} CPU, "
            f"{pool.gpus:g} GPU, {pool.strategy}.\n{render(plan, nodes)}\n"
            "Lower the numbers of workers, ranks, replicas, bundles, CPUs or GPUs, choose another layout where the "
            "job has one (layout=cpu needs 1 CPU), or run on a larger cluster."
        )
    largest = max((node.get("memory", float("inf")) for node in nodes), default=0.0) / _GIB
    for role in plan:
        if not role.gpus and role.memory_gib > largest:
            raise ResourceError(
                f"one actor of {role.name} needs about {role.memory_gib:.1f} GiB of memory, the largest node has "
                f"{largest:.1f} GiB.\n{render(plan, nodes)}\n"
                "Use a smaller model, ZeRO over more ranks, or larger nodes."
            )
    asked = sum(role.memory_gib * role.ranks for role in plan if not role.gpus)
    available = sum(node.get("memory", float("inf")) for node in nodes) / _GIB
    if asked > available:
        raise ResourceError(
            f"the roles without a GPU need about {asked:.1f} GiB of memory, the cluster has "
            f"{available:.1f} GiB.\n{render(plan, nodes)}\n"
            "Use a smaller model, fewer ranks or a smaller rollout.kv_cache_gib."
        )


def places(
    plan: Sequence[RolePlan], nodes: Sequence[Mapping[str, float]]
) -> tuple[dict[str, list[int]], PoolPlan | None]:
    """({pool: the node of each of its bundles}, the first pool that there is no room for, or None).

    As Ray would place them; between nodes with equal room it may choose another.
    """
    free = [[node.get("CPU", 0.0), node.get("GPU", 0.0)] for node in nodes]
    found: dict[str, list[int]] = {}
    for pool in pools_of(plan):
        placed = _place(pool, free)
        if placed is None:
            return found, pool
        found[pool.name] = placed
    return found, None


def render(plan: Sequence[RolePlan], nodes: Sequence[Mapping[str, float]]) -> str:
    """The plan beside what the nodes have, as a table for people; of several nodes with what each would hold."""
    rows = [("role", "actors", "CPU each", "GPU each", "threads", "GiB each", "pool", "bundles")]
    for role in plan:
        bundles = ",".join(map(str, role.bundles))
        rows.append(
            (
                role.name,
                str(role.ranks),
                f"{role.cpus:g}",
                f"{role.gpus:g}",
                str(role.threads),
                f"{role.memory_gib:.2f}" if role.memory_gib else "-",
                role.pool.name,
                bundles,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    pools = pools_of(plan)
    cpus = sum(p.bundles * p.cpus for p in pools)
    gpus = sum(p.bundles * p.gpus for p in pools)
    memory = sum(role.memory_gib * role.ranks for role in plan)
    lines.append(f"asked: {cpus:g} CPU, {gpus:g} GPU, about {memory:.1f} GiB")
    lines.append(f"available: {_totals(nodes)} on {len(nodes)} node{'' if len(nodes) == 1 else 's'}")
    if len(nodes) > 1:
        lines += [
            f"  node {number}: {_totals([node])}{_held(plan, nodes, number)}" for number, node in enumerate(nodes)
        ]
    return "\n".join(lines)


def _held(plan: Sequence[RolePlan], nodes: Sequence[Mapping[str, float]], number: int) -> str:
    """What the node would hold: its bundles' resources, the actors' memory, and their names."""
    found, unplaced = places(plan, nodes)
    if unplaced is not None:
        return ""
    bundles = {name: [b for b, node in enumerate(placed) if node == number] for name, placed in found.items()}
    pools = pools_of(plan)
    cpus, gpus = (sum(getattr(pool, what) * len(bundles[pool.name]) for pool in pools) for what in ("cpus", "gpus"))
    here = {role.name: [r for r, b in enumerate(role.bundles) if b in bundles[role.pool.name]] for role in plan}
    names = [f"{name}-{','.join(map(str, ranks))}" for name, ranks in here.items() if ranks]
    if not names:
        return "; would hold nothing"
    memory = sum(role.memory_gib * len(here[role.name]) for role in plan if not role.gpus)
    room = nodes[number].get("memory", float("inf")) / _GIB
    told = f"; would hold {cpus:g} CPU, {gpus:g} GPU, about {memory:.1f} GiB: {' '.join(names)}"
    return told + (f"  (more than its {room:.1f} GiB)" if memory > room else "")


def _totals(nodes: Sequence[Mapping[str, float]]) -> str:
    total = {key: sum(node.get(key, 0.0) for node in nodes) for key in ("CPU", "GPU", "memory")}
    return f"{total['CPU']:g} CPU, {total['GPU']:g} GPU, {total['memory'] / _GIB:.1f} GiB"


def _holds(free: Sequence[float], ask: Sequence[float]) -> bool:
    return all(f + _EPS >= a for f, a in zip(free, ask, strict=True))


def _place(pool: PoolPlan, free: list[list[float]]) -> list[int] | None:
    """Takes the pool's bundles out of `free` ([CPU, GPU] of each node); the node of each, None when they do not fit.

    Greedy, fullest fitting node first (SPREAD: the one with fewest of this pool's bundles first).
    """
    ask = (pool.cpus, pool.gpus)
    if pool.strategy == "STRICT_PACK":
        whole = (pool.cpus * pool.bundles, pool.gpus * pool.bundles)
        node = _take(whole, free, sorted(range(len(free)), key=lambda n: free[n][::-1]))
        return None if node is None else [node] * pool.bundles
    placed: list[int] = []
    for _ in range(pool.bundles):
        order = sorted(range(len(free)), key=lambda n: free[n][::-1])
        if pool.strategy == "STRICT_SPREAD":
            order = [n for n in order if n not in placed]
        elif pool.strategy == "SPREAD":
            order.sort(key=placed.count)
        node = _take(ask, free, order)
        if node is None:
            return None
        placed.append(node)
    return placed


def _take(ask: Sequence[float], free: list[list[float]], order: Sequence[int]) -> int | None:
    """The first node of `order` that has room for `ask`, which is taken from it; None where none has."""
    for n in order:
        if _holds(free[n], ask):
            free[n] = [f - a for f, a in zip(free[n], ask, strict=True)]
            return n
    return None

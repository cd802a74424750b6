"""From a layout to a plan: which actor lies in which bundle, and whether the cluster has room.

Pure: resources are numbers, nodes are dicts as `ray.nodes()` reports them ({"CPU": 8.0, ...}).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.config import LayoutConfig
from cluster.memory import Memory
from rayrlhf.errors import ConfigError, ResourceError

_GIB = 2**30
_CONTEXT_GIB = 0.5  # of a process on a GPU: CUDA's own; a rough figure
_PARTS = ("process", "weights", "optimizer", "activations", "cache")  # of an actor's memory
_EPS = 1e-6  # Ray counts resources in steps of 1e-4; sums of fractions such as 5 * 0.2 must still fit


@dataclass(frozen=True)
class PoolPlan:
    """`bundles` equal bundles of one placement group."""

    name: str
    bundles: int
    cpus: float
    gpus: float
    strategy: str
    gpu_gib: float | None = None  # memory of each GPU, where it is known


@dataclass(frozen=True)
class RolePlan:
    """One role's actors; cpus, gpus and memory (an estimate) are of each one of them."""

    name: str
    ranks: int
    cpus: float
    gpus: float
    memory: Memory
    threads: int
    pool: PoolPlan
    bundles: tuple[int, ...]  # rank -> index of its bundle in the pool
    offload: bool = False  # between calls it leaves the GPU to others

    @property
    def idle_gib(self) -> float:
        """What one actor holds of its GPU between its calls."""
        if not self.offload:
            return self.memory.device
        return 0.0 if self.name == "rollout" else self.memory.weights

    @property
    def node_gib(self) -> float:
        """What one actor holds of its node's memory, with what it moves there from its GPU."""
        if not self.gpus:
            return self.memory.total
        moved = self.memory.weights if self.name == "rollout" else self.memory.optimizer
        return self.memory.process + (moved if self.offload else 0.0)


def plan(layout: LayoutConfig, memory: Mapping[str, Memory] | None = None) -> list[RolePlan]:
    """Every role's place; `memory` is each role's estimate for one actor (see cluster.memory).

    Raises ConfigError when a pool's bundles have no room for the roles on it.
    """
    pools = {name: PoolPlan(name, p.bundles, p.cpus, p.gpus, p.strategy, p.gpu_gib) for name, p in layout.pools.items()}
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
        need = (memory or {}).get(name, Memory())
        plans.append(
            RolePlan(name, role.ranks, role.cpus, role.gpus, need, role.threads, pool, tuple(bundles), role.offload)
        )
    return plans


def worker_plan(
    name: str, ranks: int, cpus: float, gpus: float = 0.0, memory: Memory | None = None, threads: int = 1
) -> RolePlan:
    """The plan of a job whose equal workers each take a bundle of their own (Ray Train)."""
    pool = PoolPlan(name, ranks, cpus, gpus, "PACK")
    return RolePlan(name, ranks, cpus, gpus, memory or Memory(), threads, pool, tuple(range(ranks)))


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
        if role.node_gib > largest:
            raise ResourceError(
                f"one actor of {role.name} needs about {role.node_gib:.1f} GiB of memory, the largest node has "
                f"{largest:.1f} GiB.\n{render(plan, nodes)}\n{_smaller(role)}, or use larger nodes."
            )
    asked = sum(role.node_gib * role.ranks for role in plan)
    available = sum(node.get("memory", float("inf")) for node in nodes) / _GIB
    if asked > available:
        most = max(plan, key=lambda role: role.node_gib * role.ranks)
        raise ResourceError(
            f"the roles need about {asked:.1f} GiB of the nodes' memory, the cluster has {available:.1f} GiB.\n"
            f"{render(plan, nodes)}\nMost of it is {most.name}'s: {_smaller(most)}, or use more or larger nodes."
        )
    _fits_gpus(plan, nodes)


def _fits_gpus(plan: Sequence[RolePlan], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ResourceError where the roles on one bundle's GPUs need more memory than these have."""
    for pool in pools_of(plan):
        for bundle in range(pool.bundles if pool.gpu_gib else 0):
            there = [role for role in plan if role.pool == pool and role.gpus for b in role.bundles if b == bundle]
            asked, has = max(_in_phases(there)), pool.gpus * (pool.gpu_gib or 0.0)
            if asked > has:
                most = max(there, key=lambda role: role.memory.device)
                raise ResourceError(
                    f"the roles on bundle {bundle} of pool {pool.name} ({', '.join(role.name for role in there)}) need "
                    f"about {asked:.1f} GiB of GPU memory, its {pool.gpus:g} GPU of layout.pools.{pool.name}.gpu_gib="
                    f"{pool.gpu_gib:g} have {has:.1f}.\n{render(plan, nodes)}\n"
                    f"Most of it is {most.name}'s: {_smaller(most)}, or give the roles more GPUs."
                )


def _in_phases(roles: Sequence[RolePlan]) -> tuple[float, float]:
    """GiB of these roles together while responses are sampled, and while they are judged and learnt from."""
    context = _CONTEXT_GIB * len(roles)
    sampling = sum(role.memory.device if role.name == "rollout" else role.idle_gib for role in roles)
    learning = sum(role.idle_gib if role.name == "rollout" else role.memory.device for role in roles)
    return context + sampling, context + learning


def _smaller(role: RolePlan) -> str:
    """What would help where `role` needs too much: what its largest part goes by."""
    ways = {
        "process": "lower its ranks",
        "weights": "take a smaller model, or for a trained one ZeRO 3 over more ranks",
        "optimizer": "set zero_stage=2 or 3 and more ranks, or train an adapter (peft)",
        "activations": "lower microbatch_tokens and forward_tokens",
        "cache": "lower kv_cache_gib",
    }
    return ways[max(ways, key=lambda part: getattr(role.memory, part))]


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
    rows: list[tuple[str, ...]] = [
        ("role", "actors", "CPU each", "GPU each", "threads", "GiB each", *_PARTS, "pool", "bundles")
    ]
    for role in plan:
        bundles = ",".join(map(str, role.bundles))
        rows.append(
            (
                role.name,
                str(role.ranks),
                f"{role.cpus:g}",
                f"{role.gpus:g}",
                str(role.threads),
                *(f"{getattr(role.memory, part):.2f}" if role.memory.total else "-" for part in ("total", *_PARTS)),
                role.pool.name,
                bundles,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    pools = pools_of(plan)
    cpus = sum(p.bundles * p.cpus for p in pools)
    gpus = sum(p.bundles * p.gpus for p in pools)
    node_gib = sum(role.node_gib * role.ranks for role in plan)
    device = sum(role.memory.device * role.ranks for role in plan if role.gpus)
    more = f", about {device:.1f} GiB of GPU memory" if device else ""
    lines.append(f"asked: {cpus:g} CPU, {gpus:g} GPU, about {node_gib:.1f} GiB{more}")
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
    memory = sum(role.node_gib * len(here[role.name]) for role in plan)
    room = nodes[number].get("memory", float("inf")) / _GIB
    told = f"; would hold {cpus:g} CPU, {gpus:g} GPU, about {memory:.1f} GiB: {' '.join(names)}"
    return told + (f"  (more than its {room:.1f} GiB)" if memory > room else "")


def _totals(nodes: Sequence[Mapping[str, float]]) -> str:
    total = {key: sum(node.get(key, 0.0) for node in nodes) for key in ("CPU", "GPU", "memory")}
    known = all("memory" in node for node in nodes)  # of a node that an autoscaler may bring it need not be
    memory = f"{total['memory'] / _GIB:.1f} GiB" if known else "memory not known"
    return f"{total['CPU']:g} CPU, {total['GPU']:g} GPU, {memory}"


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

"""Placement groups made from a layout, and the options that put each actor into its bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import bring_up, growth
from cluster.config import LayoutConfig
from cluster.layout import PoolPlan, RolePlan, fits, places, plan, pools_of
from rayrlhf import role_logs
from rayrlhf.errors import ResourceError

_REPORT_EVERY_S = 5.0


class Placement:
    """Bundles reserved for a layout; `release` gives them back."""

    def __init__(self, layout: LayoutConfig, groups: dict[str, PlacementGroup], stage: str | None = None) -> None:
        """Use `Placement.reserve`."""
        self._plans = {role.name: role for role in plan(layout)}
        self._groups = groups
        self._stage = stage

    @classmethod
    def reserve(
        cls,
        layout: LayoutConfig,
        deadline_s: float,
        say: Callable[[str], None] = print,
        stage: str | None = None,
    ) -> Placement:
        """Reserves every pool of the layout on the connected cluster.

        `stage`: `ROOT/NAME/STAGE`; the groups are then named `NAME/STAGE/POOL`, and actors keep logs in the run.

        What the cluster could never hold is refused at once; for what others use now, and for nodes that an
        autoscaler may bring, it waits, saying what it asks and what is free.  Raises ResourceError.
        """
        roles = plan(layout)
        grows = _needs_growth(roles)
        end = time.monotonic() + deadline_s
        placement = cls(layout, {}, stage)
        if stage:
            role_logs.begin_attempt(stage)
        try:
            for pool in pools_of(roles):
                group = _group(pool, placement._name(pool))
                placement._groups[pool.name] = group
                _wait(group, pool, end, deadline_s, say, grows)
            if grows:
                fits(roles, bring_up.nodes())  # the memory of the nodes that came
        except BaseException:
            placement.release()
            raise
        return placement

    def count(self, role: str) -> int:
        """How many actors the role has."""
        return self._plans[role].ranks

    def options(self, role: str, rank: int) -> dict[str, Any]:
        """Arguments of `ActorClass.options` for this rank: resources, name, placement, environment."""
        place = self._plans[role]
        threads, name = str(place.threads), f"{role}-{rank}"
        log = role_logs.file_of(self._stage, name) if self._stage else None
        log_to = {role_logs.VARIABLE: log} if log else {}
        return {
            "name": name,
            "num_cpus": place.cpus,
            "num_gpus": place.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self._groups[place.pool.name],
                placement_group_bundle_index=place.bundles[rank],
                # what an actor starts in turn (vLLM's workers are processes, not actors) is not
                # to take the bundle's share of another role
                placement_group_capture_child_tasks=False,
            ),
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | log_to},
        }

    def _name(self, pool: PoolPlan) -> str:
        """Of a pool's placement group; Ray refuses a name that another one of this job has, but for the empty one."""
        return "/".join([*self._stage.rstrip("/").split("/")[-2:], pool.name]) if self._stage else ""

    def release(self) -> None:
        """Gives the bundles back; actors still in them are killed by Ray."""
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups = {}


def grow(roles: Sequence[RolePlan], deadline_s: float, say: Callable[[str], None] = print) -> None:
    """Waits until the autoscaler has brought the nodes that the plan needs; at once where they are there.

    Ray Train takes its bundles by itself and without a word: this asks for them before, and gives them back.
    Raises ResourceError as `Placement.reserve` does.
    """
    if not _needs_growth(roles):
        return
    end = time.monotonic() + deadline_s
    groups: list[PlacementGroup] = []
    try:
        for pool in pools_of(roles):
            groups.append(_group(pool))
            _wait(groups[-1], pool, end, deadline_s, say, True)
    finally:
        for group in groups:
            remove_placement_group(group)
    fits(roles, bring_up.nodes())


def _needs_growth(roles: Sequence[RolePlan]) -> bool:
    nodes = bring_up.nodes()
    # the autoscaler is asked only where there is no room
    most = growth.most_of_cluster() if places(roles, nodes)[1] is not None else None
    return growth.needs_growth(roles, nodes, most)


def _group(pool: PoolPlan, name: str = "") -> PlacementGroup:
    bundle = {name: n for name, n in (("CPU", pool.cpus), ("GPU", pool.gpus)) if n}
    return placement_group([bundle] * pool.bundles, pool.strategy, name)


def _wait(
    group: PlacementGroup, pool: PoolPlan, end: float, deadline_s: float, say: Callable[[str], None], grows: bool
) -> None:
    asked = f"pool {pool.name} asks {pool.bundles} x {pool.cpus:g} CPU, {pool.gpus:g} GPU ({pool.strategy})"
    while True:
        left = end - time.monotonic()
        if group.wait(max(0.1, min(left, _REPORT_EVERY_S))):
            return
        free = ray.available_resources()
        state = f"{asked}; free in the cluster: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
        if grows:
            state += f" on {len(bring_up.nodes())} node(s)"
        if time.monotonic() >= end:
            cause = (
                "The autoscaler has not brought the nodes: see `ray status` and the head's monitor.log, or raise "
                "start_deadline_s where the job has it"
                if grows
                else "Others hold the rest: see the dashboard's Actors tab and `ray status`; wait for them, or ask "
                "less in layout"
            )
            raise ResourceError(f"no room after {deadline_s:g} s: {state}. {cause}")
        what = "the autoscaler, which is expected to bring nodes" if grows else "room"
        say(f"waiting for {what}, {max(0.0, left):.0f} s left: {state}")

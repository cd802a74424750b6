"""Steps of the real coordinator over players: the seconds and bytes that are its own."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

from actors.group import ActorGroup
from benchmarks.scale.clock import Clock
from benchmarks.scale.cluster import STEP_S, Cluster
from benchmarks.scale.players import InProcess, Processes, Traffic, prompts_of, roles_of, sampler_of
from rayrlhf import batches, coordinator, estimators
from rayrlhf.coordinator import PPO
from rayrlhf.ppo_config import AlgorithmConfig

# the parts of the coordinator's own work: what runs in each
PARTS = [
    (batches.Batch, "rows", "split and join"),
    (batches.Batch, "dealt", "split and join"),
    (batches.Batch, "concat", "split and join"),
    (coordinator, "_check_finite", "check"),
    (estimators.ActorCritic, "__call__", "estimate"),
    (coordinator, "kl_estimate", "estimate"),
    (coordinator, "step_metrics", "metrics"),
]

BESIDE = ("players", "metrics")  # parts that no step waits for


def in_process(cluster: Cluster, steps: int) -> dict[str, Any]:
    """Medians over `steps` of a step's CPU seconds by part, without the players'; and what goes through the driver.

    `waited_s`: those in which no role works; metrics are made while policy and critic learn.
    """
    clock = Clock()
    players = InProcess(clock)
    seconds = asyncio.run(_steps(cluster, players, steps, clock))
    medians = {part: statistics.median(step.get(part, 0.0) for step in seconds) for part in set().union(*seconds)}
    medians["calls and the rest"] = medians.pop("")
    medians.pop("players")
    own = [sum(s for part, s in step.items() if part != "players") for step in seconds]
    waited = statistics.median(sum(s for part, s in step.items() if part not in BESIDE) for step in seconds)
    total = statistics.median(own)
    return {
        "parts_s": {part: round(s, 4) for part, s in sorted(medians.items())},
        "own_s": round(total, 4),
        "own_s_lowest_and_highest": [round(min(own), 4), round(max(own), 4)],
        "share_of_step": round(total / (STEP_S + total), 5),
        "waited_s": round(waited, 4),
        "waited_share": round(waited / (STEP_S + waited), 5),
        "bytes": asdict(players.traffic),
    }


async def _steps(cluster: Cluster, players: InProcess, steps: int, clock: Clock) -> list[dict[str, float]]:
    prompts, taken = prompts_of(cluster), []
    ppo = PPO(roles_of(cluster, players), AlgorithmConfig())
    sampler = sampler_of(ppo.roles, prompts)
    with players.watch():
        for step in range(steps + 1):  # the first warms up, and is the one whose bytes are counted
            players.is_counted = step == 0
            calls = players.traffic.calls
            clock.take()
            with clock.watching(PARTS), patch.object(asyncio, "to_thread", _here):
                await ppo.step(sampler, step)
            taken.append(clock.take())
            if step == 0:
                players.traffic, counted = Traffic(), players.traffic
        counted.calls = players.traffic.calls // steps if steps else calls
        players.traffic = counted
    return taken[1:]


async def _here(function: Callable[..., Any], *args: Any) -> Any:
    """For `asyncio.to_thread`: the clock counts one thread."""
    return function(*args)


def over_processes(cluster: Cluster, processes: int, steps: int) -> dict[str, Any]:
    """Medians over `steps` with real Ray actors: seconds of the step, and CPU seconds of the driver's process in it."""
    players = Processes(min(processes, sum(cluster.actors.values())))
    wall, cpu = asyncio.run(_real_steps(cluster, players, steps))
    return {
        "processes": players.count,
        "wall_s": round(statistics.median(wall), 4),
        "driver_cpu_s": round(statistics.median(cpu), 4),
        "steps": steps,
    }


async def _real_steps(cluster: Cluster, players: Processes, steps: int) -> tuple[list[float], list[float]]:
    prompts, wall, cpu = prompts_of(cluster), [], []
    ppo = PPO(roles_of(cluster, players), AlgorithmConfig())
    sampler = sampler_of(ppo.roles, prompts)
    for step in range(steps + 1):
        began, used = time.perf_counter(), time.process_time()
        await ppo.step(sampler, step)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    groups: list[ActorGroup] = [ppo.roles.policy, ppo.roles.rollout]  # type: ignore[list-item]
    for handle in {handle for group in groups for handle in group.handles}:
        import ray

        ray.kill(handle)
    return wall[1:], cpu[1:]

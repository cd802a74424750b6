"""Who is late is named with where its Python is, on a real local Ray: in a collective, asleep, stopped, gone."""

import asyncio
import os
import signal
import time

import pytest
import torch

from actors import calls, stacks
from actors.group import RankGroup, ReplicaGroup
from actors.ranks import EngineRank
from actors.watchdog import DRIVER, Watchdog
from rayrlhf.frames import innermost
from tests.actors.test_group import Anywhere


class Sleeper:
    def start(self):
        pass

    def sleep_for_long(self, seconds):
        time.sleep(seconds)


class Meeting(EngineRank):
    def start(self, rank, world_size, address, port, timeout_s, threads):
        self.join(rank, world_size, address, port, timeout_s, threads)

    def meet(self, late_s):
        if self.rank:
            time.sleep(late_s)
        torch.distributed.barrier()


@pytest.fixture
def groups(ray_local):
    made = []

    def make(kind, role, actor, count):
        made.append(kind(role, actor, {"threads": 1} if kind is RankGroup else {}, Anywhere(), count, 60.0))
        return made[-1]

    yield make
    for group in made:
        group.stop()


async def watched(groups, calls_, run, until=1):
    """What is said while the calls go on, until as many reports came."""
    said: list[str] = []
    watchdog = Watchdog(0.5, groups, str(run / "ppo"), said.append)
    watchdog.start()
    tasks = [asyncio.ensure_future(call) for call in calls_]
    try:
        for _ in range(300):
            if len(said) >= until:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # enough for a second report, if there were one
        return said
    finally:
        watchdog.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_rank_that_keeps_its_peers_waiting_is_told_from_them(groups, tmp_path):
    group = groups(RankGroup, "policy", Meeting, 2)
    await group.start(120)
    [said] = await watched({"policy": group}, [group.together("meet", 8)], tmp_path)
    assert "waiting for policy-0: meet, policy-1: meet" in said
    first, second = said.split("  policy-1 ")
    assert "policy-0 waits for its peers\n" in first and "in barrier" in first
    assert second.startswith("is in\n    tests/actors/test_watchdog.py:") and "in meet" in second.splitlines()[1]
    whole = (tmp_path / "logs" / "ppo" / "stalls.txt").read_text()
    assert "---- policy-0" in whole and "in main_loop" in whole and str(tmp_path / "logs/ppo/stalls.txt") in said


async def test_one_report_a_wait_and_the_driver_has_a_stack_too(groups, tmp_path):
    group = groups(ReplicaGroup, "reward", Sleeper, 1)
    await group.start(60)

    def reads_prompts():
        with calls.wait_for(DRIVER, "a batch of prompts"):
            time.sleep(3)

    asked = [group.ask(0, "sleep_for_long", 6), asyncio.to_thread(reads_prompts)]
    [said] = await watched({"reward": group}, asked, tmp_path)
    assert "driver: a batch of prompts" in said and "reward-0: sleep_for_long" in said
    assert "reward-0 is in\n    tests/actors/test_watchdog.py:" in said and "CPUs of the cluster: " in said
    assert "in reads_prompts" in (tmp_path / "logs/ppo/stalls.txt").read_text()


async def test_a_stopped_process_and_one_that_is_gone_have_no_stack(groups):
    group = groups(ReplicaGroup, "reward", Sleeper, 1)
    await group.start(60)
    place = group.places["reward-0"]
    assert "in main_loop" in await asyncio.to_thread(stacks.ask, place)
    os.kill(place.pid, signal.SIGSTOP)
    try:
        assert "did not take the signal (is it stopped?)" in await asyncio.to_thread(stacks.ask, place)
    finally:
        os.kill(place.pid, signal.SIGCONT)
    gone = await asyncio.to_thread(stacks.ask, place._replace(started="0"))
    assert gone == f"no stack: process {place.pid} is gone"
    assert innermost(gone) == [gone]

"""Failures in a row: said, waited for longer each time, and bounded."""

import asyncio

import pytest

from rayrlhf.errors import GaveUp, RoleError
from rayrlhf.restarts import RecoveryConfig, Restarts, check_stall


async def test_waits_double_and_end(monkeypatch):
    waits, said = [], []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    restarts = Restarts(RecoveryConfig(max_restarts=3, backoff_s=0.5), said.append)
    error = RoleError("reward-1 died in `scores`. Likely causes: ...\nand a traceback")
    for _ in range(3):
        await restarts.after("reward-1", error)
    await restarts.after("reward-0", error)  # another name, another row
    assert waits == [0.5, 1.0, 2.0, 0.5] and restarts.count == 4
    assert said[1] == (
        "warning: reward-1 died in `scores`. Likely causes: ...\n"
        "warning: beginning reward-1 anew in 1 s (restart 2 of 3 in a row)"
    )
    with pytest.raises(GaveUp, match="(?s)and a traceback\nreward-1 failed 4 time.*recovery.max_restarts=3 is used up"):
        await restarts.after("reward-1", error)
    restarts.succeeded("reward-0")
    await restarts.after("reward-0", error)
    assert waits[-1] == 0.5


async def test_none_allowed_the_first_failure_ends_it():
    with pytest.raises(GaveUp, match="failed 1 time"):
        await Restarts(RecoveryConfig(max_restarts=0)).after("reward-0", RoleError("died"))


def test_a_wait_is_reported_before_its_call_fails():
    assert check_stall(RecoveryConfig(), 900.0) == 180.0
    assert check_stall(RecoveryConfig(stall_s=5), 6.0) == 5.0
    with pytest.raises(ValueError, match="recovery.stall_s=10 has no effect, as a call fails after call_deadline_s=9"):
        check_stall(RecoveryConfig(stall_s=10), 9.0)

"""Calls to actors that answer, raise, hang and die, on a real local Ray."""

import asyncio
import os
import pickle
import signal
import time
from typing import Any

import pytest
import ray

from actors import calls
from actors.calls import RoleDied
from rayrlhf.errors import ConfigError, DeadlineError, RoleError


class Worker:
    def add(self, a, b, c=0):
        return a + b + c

    def fail(self):
        raise ValueError("seven is not even")

    def refuse(self):
        raise ConfigError("set lr lower")

    def time_out(self):
        raise TimeoutError("inner wait")

    def hang(self):
        time.sleep(120)

    def die(self, after_s=0.0):
        time.sleep(after_s)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def workers(ray_local):
    remote_class: Any = ray.remote(Worker)
    handles = [remote_class.options(num_cpus=0).remote() for _ in range(2)]
    ray.get([h.add.remote(1, 1) for h in handles])
    yield handles
    for handle in handles:
        ray.kill(handle)


def ask(handle, method, *args, role="policy-0", deadline_s=60.0, **kwargs):
    return calls.call(handle, method, *args, role=role, deadline_s=deadline_s, **kwargs)


def test_answers_with_positional_and_keyword_arguments(workers):
    assert asyncio.run(ask(workers[0], "add", 2, 3, c=4)) == 9


def test_an_error_names_role_and_method_and_holds_the_remote_traceback(workers):
    with pytest.raises(RoleError) as caught:
        asyncio.run(ask(workers[0], "fail"))
    message = str(caught.value)
    assert message.startswith("policy-0 failed in `fail`")
    assert "seven is not even" in message and "test_calls.py" in message
    assert "\x1b" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_user_error_comes_out_as_itself(workers):
    with pytest.raises(ConfigError) as caught:
        asyncio.run(ask(workers[0], "refuse"))
    assert type(caught.value) is ConfigError and str(caught.value) == "set lr lower"


def test_a_timeout_inside_the_actor_is_not_taken_for_the_deadline(workers):
    with pytest.raises(RoleError, match="inner wait") as caught:
        asyncio.run(ask(workers[0], "time_out"))
    assert not isinstance(caught.value, DeadlineError)


def test_a_hanging_call_ends_at_its_deadline(workers):
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="policy-0 did not answer `hang` within 0.5 s"):
        asyncio.run(ask(workers[0], "hang", deadline_s=0.5))
    assert time.monotonic() - began < 5


def test_a_killed_actor_is_named_within_seconds(workers):
    began = time.monotonic()
    with pytest.raises(RoleDied, match="policy-0 died in `die`"):
        asyncio.run(ask(workers[0], "die"))
    assert time.monotonic() - began < 20


def test_gather_keeps_the_order(workers):
    async def both():
        return await calls.gather([ask(workers[i], "add", i, 10) for i in (1, 0)])

    assert asyncio.run(both()) == [11, 10]


def test_gather_does_not_wait_for_the_peers_of_a_failed_rank(workers):
    async def both():
        await calls.gather([ask(workers[0], "hang"), ask(workers[1], "fail", role="policy-1")])

    began = time.monotonic()
    with pytest.raises(RoleError, match="policy-1 failed in `fail`"):
        asyncio.run(both())
    assert time.monotonic() - began < calls.EXPLANATION_S + 5


def test_gather_blames_the_rank_that_died_not_the_peer_whose_collective_broke(workers):
    """policy-0's error comes first, as a broken connection does; policy-1's death explains it."""

    async def both():
        await calls.gather([ask(workers[0], "fail"), ask(workers[1], "die", 0.5, role="policy-1")])

    with pytest.raises(RoleDied) as caught:
        asyncio.run(both())
    assert str(caught.value).startswith("policy-1 died")
    assert "policy-0 failed in `fail`" in str(caught.value)

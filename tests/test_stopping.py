"""The first request ends a loop after its step, the second one, or one without a loop, the job."""

import os
import signal

import pytest

from jobs import command
from rayrlhf import stopping
from rayrlhf.errors import Interrupted


def test_a_request_is_seen_once_and_only_inside_a_loop():
    told, steps = [], 0
    assert not stopping.request() and not stopping.asked(), "no loop: the job ends at once"
    with pytest.raises(Interrupted, match="sft: stopped after a whole step"):
        with stopping.after_step("sft", lambda: told.append(steps)):
            while not stopping.asked():
                steps += 1
                if steps == 3:
                    assert stopping.request()
            assert not stopping.request(), "the second one ends it at once"
    assert (steps, told) == (3, [3]) and not stopping.asked()
    with stopping.after_step("the next one"):
        assert not stopping.asked(), "a request is not carried on"


def test_an_error_in_the_loop_is_what_is_raised():
    with pytest.raises(ValueError, match="mine"), stopping.after_step("ppo"):
        stopping.request()
        raise ValueError("mine")


def test_signals_make_requests(capfd):
    with command._interruptible() as listen:
        listen()
        with pytest.raises(Interrupted), stopping.after_step("ppo"):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping.asked()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err.count("once more stops at once") == 1

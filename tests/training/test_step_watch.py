"""A step that takes too long is told once, with where it is."""

import time

from rayrlhf.training.step_watch import StepWatch


def a_slow_step(said):
    end = time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)


def test_each_slow_step_is_told_once():
    said: list[str] = []
    watch = StepWatch("sft, worker 1", 0.2, said.append)
    watch.begin(7)
    a_slow_step(said)
    assert len(said) == 1 and said[0].startswith("warning: sft, worker 1: step 7 takes 0 s; it is in\n    ")
    assert "in a_slow_step" in said[0]
    watch.begin(8)
    watch.stop()
    assert len(said) == 1

"""Stacks in a few lines."""

import threading

from rayrlhf.frames import innermost, stack_of_this_process


def test_the_thread_of_rays_methods_is_the_one_that_is_shown():
    stack = (
        'Thread 0x1 (most recent call first):\n  File "/a/b/threading.py", line 320 in wait\n\n'
        'Current thread 0x2 (most recent call first):\n'
        '  File "/x/site-packages/torch/distributed/distributed_c10d.py", line 4 in barrier\n'
        '  File "/home/me/project/actors/policy.py", line 30 in update\n'
        '  File "/x/site-packages/ray/_private/worker.py", line 9 in main_loop\n'
    )  # fmt: skip
    assert innermost(stack, 2) == [
        "torch/distributed/distributed_c10d.py:4 in barrier",
        "project/actors/policy.py:30 in update",
    ]


def test_this_process_is_shown_with_its_main_thread():
    def waits(event):
        event.wait()

    event, found = threading.Event(), []
    other = threading.Thread(target=waits, args=(event,))
    other.start()

    def asks():
        found.append(stack_of_this_process())

    asking = threading.Thread(target=asks)
    asking.start()
    asking.join()
    event.set()
    other.join()
    first, *rest = found[0].split("\n\n")
    assert "in test_this_process_is_shown_with_its_main_thread" in first
    assert any("in waits" in text for text in rest) and "in asks" not in found[0]

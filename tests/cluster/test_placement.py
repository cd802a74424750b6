"""Placement groups on a real (simulated) cluster of two nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_alone(module):
    """What `python -m MODULE` prints after SEEN; in its own process, as it has its own Ray cluster."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("SEEN "))


@pytest.fixture(scope="module")
def seen():
    return run_alone("tests.cluster.two_nodes")


def test_strict_spread_puts_ranks_on_both_nodes_with_names_and_threads(seen):
    actors = seen["actors"]
    nodes = {name: node for name, (node, *_) in actors.items()}
    assert seen["nodes"] == 2
    assert nodes["a-0"] != nodes["a-1"]
    assert nodes["b-0"] == nodes["a-0"]  # they share bundle 0
    assert all(name == own for name, (_, own, *_) in actors.items())
    assert {name: threads for name, (_, _, threads, _) in actors.items()} == {
        "a-0": ["2", 2],
        "a-1": ["2", 2],
        "b-0": ["1", 1],
    }


def test_waiting_for_others_says_so_and_ends_at_the_deadline(seen):
    assert "no room after 2 s" in seen["busy"]["message"]
    assert "pool p asks 2 x 2 CPU" in seen["busy"]["message"]
    assert "free in the cluster: 2 CPU" in seen["busy"]["message"]
    assert 2 <= seen["busy"]["seconds"] < 6


def test_released_bundles_are_free_again(seen):
    assert seen["freed"] is None
    assert set(seen["left_over"]) <= {"REMOVED"}


def test_more_than_the_cluster_has_is_refused_at_once(seen):
    assert "asked: 3 CPU" in seen["too_much"]["message"]
    assert "available: 4 CPU, 0 GPU" in seen["too_much"]["message"]
    assert seen["too_much"]["seconds"] < 1

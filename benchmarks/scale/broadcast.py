"""How long a copy of the weights takes to reach every node, by a small event simulation.  A model, not a measurement.

Every node sends to at most `slots` others at a time, each of which gets an equal part of the link, and takes one
bucket after the other, as a rollout's `load` does.  Not in it: latencies, the switch, CPU work, what a link loses to
protocols.

- `source`   every node asks the node that put the buckets.
- `holders`  a node asks one that holds the bucket when it asks, chosen at random, and waits its turn there: what Ray's
             object manager does with today's actors/weight_sync.py.  All ask for the same bucket before another
             node has it, so it comes to the same.
- `rotated`  as `holders`, but each node begins with another bucket.
- `tree`     node n is sent each bucket by node (n - 1) // fan_out, which passes it on as soon as it has it; with a
             fan-out of 1 a chain.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field


@dataclass
class _Simulation:
    """Node 0 holds all buckets."""

    num_nodes: int  # that are to get them
    num_buckets: int
    bucket_s: float  # of one bucket over a link that nobody shares
    slots: int
    now: float = 0.0
    transfers: int = 0
    _arrivals: list[tuple[float, int, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("num_nodes", "num_buckets", "slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        self._queues: list[deque[tuple[int, int]]] = [deque() for _ in range(self.num_nodes + 1)]
        self._busy = [0] * (self.num_nodes + 1)

    def send(self, sender: int, to: int, bucket: int) -> None:
        """When the sender has a slot."""
        self._queues[sender].append((to, bucket))
        self._go_on(sender)

    def _go_on(self, sender: int) -> None:
        while self._queues[sender] and self._busy[sender] < self.slots:
            to, bucket = self._queues[sender].popleft()
            self._busy[sender] += 1
            self.transfers += 1  # also orders arrivals of the same moment
            heapq.heappush(self._arrivals, (self.now + self.bucket_s * self.slots, self.transfers, sender, to, bucket))

    def next_arrival(self) -> tuple[int, int] | None:
        """(node, bucket) of the next one; None when nothing is on its way.  `go_on` follows."""
        if not self._arrivals:
            return None
        self.now, _, self._sender, to, bucket = heapq.heappop(self._arrivals)
        self._busy[self._sender] -= 1
        return to, bucket

    def go_on(self) -> None:
        """The slot that the arrival freed is used again."""
        self._go_on(self._sender)


def seconds(
    kind: str, num_nodes: int, num_buckets: int, bucket_s: float, slots: int = 1, fan_out: int = 1, seed: int = 0
) -> float:
    """Until `num_nodes` nodes have all buckets of `bucket_s` seconds (alone on a link) each.

    Raises ValueError for another kind and numbers below 1.
    """
    simulation = _Simulation(num_nodes, num_buckets, bucket_s, slots)
    if kind == "tree":
        if fan_out < 1:
            raise ValueError(f"fan_out is {fan_out}; it must be at least 1")
        _run_tree(simulation, fan_out)
    elif kind in ("source", "holders", "rotated"):
        _run_asking(simulation, kind != "source", kind == "rotated", random.Random(seed))
    else:
        raise ValueError(f"kind is {kind!r}; it must be 'source', 'holders', 'rotated' or 'tree'")
    assert simulation.transfers == num_nodes * num_buckets, "a node was left out, or had a bucket twice"
    return simulation.now


def _run_tree(simulation: _Simulation, fan_out: int) -> None:
    def children(node: int) -> range:
        return range(node * fan_out + 1, min(node * fan_out + fan_out, simulation.num_nodes) + 1)

    for bucket in range(simulation.num_buckets):
        for child in children(0):
            simulation.send(0, child, bucket)
    while arrival := simulation.next_arrival():
        node, bucket = arrival
        for child in children(node):
            simulation.send(node, child, bucket)
        simulation.go_on()


def _run_asking(simulation: _Simulation, of_holders: bool, is_rotated: bool, chance: random.Random) -> None:
    num_nodes, num_buckets = simulation.num_nodes, simulation.num_buckets
    holders: list[list[int]] = [[0] for _ in range(num_buckets)]
    had = [0] * (num_nodes + 1)

    def ask(node: int) -> None:
        first = (node - 1) * num_buckets // num_nodes if is_rotated else 0
        bucket = (first + had[node]) % num_buckets
        simulation.send(chance.choice(holders[bucket]) if of_holders else 0, node, bucket)

    for node in range(1, num_nodes + 1):
        ask(node)
    while arrival := simulation.next_arrival():
        node, bucket = arrival
        holders[bucket].append(node)
        had[node] += 1
        if had[node] < num_buckets:
            ask(node)
        simulation.go_on()

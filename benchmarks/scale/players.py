"""Actors that play the roles: they answer at once with tensors of the real shapes, and compute nothing.

The groups of actors/ are the real ones, and so is what they do with batches and answers; only the actors behind them
are players.  `InProcess` has none at all: what is passed by value and what is answered goes through Ray's object store
in this process, as Ray would have it, and the parts that are an actor's work are counted as such.  `Processes` has real
Ray actors, each of which plays several ranks where there are more ranks than processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from unittest.mock import patch

import ray
import torch
from torch import Tensor

from actors.group import ActorGroup, CriticGroup, PolicyGroup, ReferenceGroup, RewardGroup
from actors.rollout import RolloutGroup
from actors.weight_sync import Publisher
from benchmarks.scale.clock import Clock
from benchmarks.scale.cluster import VOCABULARY, Cluster
from rayrlhf.batches import Prompts, Rollouts, Scores, Values
from rayrlhf.coordinator import Roles
from rayrlhf.sampling import OnPolicy
from rayrlhf.stream import Stream

SMALL_BYTES = 100 * 1024  # Ray sends an argument or answer up to this size with the call
BUCKETS, TENSORS = 57, 339  # of Qwen2.5 7B in bfloat16: 14.2 GiB in buckets of 256 MiB


def prompts_of(cluster: Cluster) -> Prompts:
    draw = torch.Generator().manual_seed(0)
    rows = cluster.rows
    tokens = torch.randint(VOCABULARY, (rows, cluster.half), generator=draw)
    return Prompts(tokens, torch.full((rows,), cluster.half), torch.arange(rows))


class Player:
    """Any rank of any role.  `is_first`: rank 0, which answers for its group's other ranks; so does every replica."""

    def __init__(self, is_first: bool = True) -> None:
        self.is_first, self._version = is_first, 0
        self._made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Any) -> Any:
        """Answers are made in the warm-up."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def generate(self, prompts: Prompts, seed: int, part: None = None) -> Rollouts:
        def make() -> tuple[Tensor, Tensor, Tensor]:
            draw = torch.Generator().manual_seed(seed + int(prompts.prompt_index[0]))
            responses = torch.randint(VOCABULARY, prompts.tokens.shape, generator=draw)  # as long as the prompts
            tokens = torch.cat([prompts.tokens, responses], 1)
            mask = torch.zeros_like(tokens, dtype=torch.bool)
            mask[:, prompts.tokens.shape[1] :] = True
            return tokens, mask, torch.where(mask, -torch.rand(tokens.shape, generator=draw), 0.0)

        tokens, mask, logprobs = self._once(("generate", int(prompts.prompt_index[0])), make)
        rows, version = len(prompts), torch.full((len(prompts),), self._version)
        lengths, finished = torch.full((rows,), tokens.shape[1]), torch.ones(rows, dtype=torch.bool)
        return Rollouts(tokens, lengths, mask, logprobs, finished, prompts.prompt_index, version)

    def logprobs(self, rollouts: Rollouts) -> Tensor | None:
        return self._per_token(rollouts, -1.0) if self.is_first else None

    def values(self, rollouts: Rollouts) -> Values | None:
        return Values(self._per_token(rollouts, 0.5), torch.zeros(len(rollouts))) if self.is_first else None

    def _per_token(self, rollouts: Rollouts, about: float) -> Tensor:
        def make() -> Tensor:
            draw = torch.Generator().manual_seed(0)
            noise = 0.1 * torch.randn(rollouts.tokens.shape, generator=draw)
            return torch.where(rollouts.response_mask, about + noise, 0.0)

        return self._once(("per token", len(rollouts), about), make)

    def scores(self, rollouts: Rollouts) -> Scores:
        total = self._once(("scores", len(rollouts)), lambda: torch.randn(len(rollouts)))
        return Scores(total, total[:, None], ("model",))

    def update(self, *_: Any) -> dict[str, float] | None:
        return {f"policy/number_{i}": 0.5 for i in range(20)} if self.is_first else None

    def export_weights(self, bucket_bytes: int) -> list[tuple[Any, dict[str, str]]] | None:
        """As many refs and digests as a 7B model has; behind the refs is next to nothing."""
        if not self.is_first:
            return None
        self._made["buckets"] = [ray.put(torch.zeros(1)) for _ in range(BUCKETS)]
        names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(TENSORS)]
        digests = [dict.fromkeys(names[i::BUCKETS], "0123456789abcdef") for i in range(BUCKETS)]
        return list(zip(self._made["buckets"], digests, strict=True))

    def load(self, version: int, buckets: list[Any]) -> tuple[dict[str, str], int]:
        self._version = version
        names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(TENSORS)]
        return dict.fromkeys(names, "0123456789abcdef"), 0


class Players(Protocol):
    """Where the actors of the groups come from."""

    def handle(self, role: str, rank: int) -> Any:
        """What the group calls."""

    def watch(self) -> Any:
        """A context manager for the steps."""


@dataclass
class Traffic:
    """What went through the driver, in bytes as Ray serialises them, and how many calls it made.

    `puts`: batches that it put for ranks; `arguments`: what it passed by value; `answers`."""

    calls: int = 0
    puts: int = 0
    arguments: int = 0
    answers: int = 0


def size(value: Any) -> int:
    """Bytes of `value` as Ray serialises it."""
    return int(ray._private.worker.global_worker.get_serialization_context().serialize(value).total_bytes)


class InProcess:
    """Players in this process.  The clock's section `players` is what they take, `send` and `receive` what the driver
    takes to put arguments and get answers."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.traffic = clock, Traffic()
        self.is_counted = False  # the sizes too, in a step that is not timed

    def handle(self, role: str, rank: int) -> Any:
        return _Handle(Player(role not in ("policy", "critic") or rank == 0), self)

    def put(self, value: Any) -> ray.ObjectRef:
        if self.is_counted:
            self.traffic.puts += size(value)
        with self.clock.section("send"):
            return self._put(value)

    @contextmanager
    def watch(self) -> Iterator[None]:
        self._put = ray.put
        with patch("actors.group.ray.put", self.put):
            yield


class _Handle:
    def __init__(self, player: Player, players: InProcess) -> None:
        self._player, self._players = player, players

    def __getattr__(self, method: str) -> _Method:
        return _Method(getattr(self._player, method), self._players)


class _Method:
    def __init__(self, function: Any, players: InProcess) -> None:
        self._function, self._players = function, players

    def options(self, name: str) -> _Method:
        return self

    def remote(self, *args: Any) -> _Answer:
        players = self._players
        sent = [arg for arg in args if not isinstance(arg, ray.ObjectRef)]
        players.traffic.calls += 1
        if players.is_counted:
            players.traffic.arguments += sum(size(arg) for arg in sent)
        with players.clock.section("send"):
            for arg in sent:
                if isinstance(arg, list):
                    ray.cloudpickle.dumps(arg)
                elif hasattr(arg, "SHAPES"):
                    players._put(arg)
        with players.clock.section("players"):
            # ranks that answer nothing would each read the batch: hundreds of times, in this one process
            is_read = self._function.__self__.is_first
            answer = self._function(*(ray.get(a) if is_read and isinstance(a, ray.ObjectRef) else a for a in args))
            if players.is_counted:
                players.traffic.answers += size(answer)
            return _Answer(players._put(answer), players.clock)


class _Answer:
    def __init__(self, ref: ray.ObjectRef, clock: Clock) -> None:
        self._ref, self._clock = ref, clock

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()  # as the others are asked meanwhile
        with self._clock.section("receive"):
            return ray.get(self._ref)


class Processes:
    """Players in `count` Ray actors: rank 0 of policy and critic has one of its own, the other ranks and replicas are
    dealt out to the rest."""

    def __init__(self, count: int) -> None:
        actor = ray.remote(num_cpus=0)(Player)
        self._first = {role: actor.remote(True) for role in ("policy", "critic")}
        half = max(1, (count - 2) // 2)
        self._silent = [actor.remote(False) for _ in range(half)]
        self._speaking = [actor.remote(True) for _ in range(max(1, count - 2 - half))]
        self.count = 2 + len(self._silent) + len(self._speaking)
        self._dealt = {True: 0, False: 0}

    def handle(self, role: str, rank: int) -> Any:
        is_rank = role in self._first
        if is_rank and rank == 0:
            return self._first[role]
        pool = self._silent if is_rank else self._speaking
        self._dealt[is_rank] += 1
        return pool[self._dealt[is_rank] % len(pool)]

    @contextmanager
    def watch(self) -> Iterator[None]:
        yield


def roles_of(cluster: Cluster, players: Players) -> Roles:
    """The groups of actors/ over `players`, ready to be called."""

    def create(group: ActorGroup, rank: int) -> Any:
        return players.handle(group.role, rank)

    placement: Any = None  # asked by what `create` replaces
    with patch.object(ActorGroup, "_create", create):
        count = cluster.actors
        policy = PolicyGroup("policy", Player, {}, placement, count["policy"], 600.0)
        critic = CriticGroup("critic", Player, {}, placement, count["critic"], 600.0)
        reference = ReferenceGroup("reference", Player, {}, placement, count["reference"], 600.0)
        reward = RewardGroup("reward", Player, {}, placement, count["reward"], 600.0)
        rollout = RolloutGroup("", None, None, placement, count["rollout"], 600.0)  # type: ignore[arg-type]
    for group in (reference, reward, rollout):
        group._is_ready = [True] * len(group.handles)
    return Roles(policy, critic, reference, reward, rollout, Publisher(policy, rollout))


def sampler_of(roles: Roles, prompts: Prompts) -> OnPolicy:
    """The same prompts for each step."""
    same = Stream(lambda first, last: (prompts for _ in range(first, last)), 0, 2)
    return OnPolicy(roles.rollout, roles.publisher, same, seed=0)

"""Groups of actors that play one role: ranks of one engine, or replicas of one frozen model.

RankGroup (policy, critic): N ranks of one DeepSpeed engine.  A call goes to every rank, with the
WHOLE batch to rank 0, which hands it on over the ranks' own network: it leaves the coordinator's
node once, not once for each node that trains.  The ranks share out its rows themselves (they run
collectives, so all must take part the same number of times), and rank 0 answers for all.

    coordinator          policy-0                 policy-1                 policy-2
        | batch -----------> |                        |                        |
        |                    '------ broadcast -----> '----------------------> |
        |                forward its share        forward its share        forward its share
        |                     '------ collectives: gather, reduce, broadcast -----'
        | <--- answer ------- |                        |                        |
        |   waits for: every rank.   unblocked by: all answers, the first failure, or the deadline
        v

ReplicaGroup (reference, reward): N independent copies.  The rows are cut into contiguous parts.

    coordinator          reference-0      reference-1
        | rows 0..31 ------> |                |
        | rows 32..63 -----------------------> |
        | <-- part 0 ------- |                |
        | <-- part 1 ------------------------- |
        v   joined in row order; same waiting rules

Calls to one actor queue in order (one thread each); calls to different groups run side by side.

A replica that dies, hangs beyond its deadline or raises what is no user's error is replaced by a new process, and its
part alone is asked again.  A rank has state, and its peers hang without it: the group's error is then StateLost, and
`restart` gives it new processes, as the run began; the loop around the step decides when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import ray
import torch
from torch import Tensor

from actors import calls, stacks
from rayrlhf import environment
from rayrlhf.batches import Batch, CriticBatch, PolicyBatch, Rollouts, Scores, TextBatch, Values
from rayrlhf.errors import GaveUp, RoleError, StateLost
from rayrlhf.restarts import RecoveryConfig, Restarts
from rayrlhf.roles import Metrics
from rayrlhf.side_by_side import gather

T = TypeVar("T")
_NAME_S = 30.0  # as long may Ray hold the name of an actor that was killed


class Placement(Protocol):
    """What a group needs to know of the cluster (`cluster.placement.Placement` has it)."""

    def options(self, role: str, rank: int) -> dict[str, Any]:
        """Arguments of `ActorClass.options` for this rank: resources, name, placement, environment."""


class ActorGroup:
    """`count` actors of one class, named `role-0`, `role-1`, ..."""

    def __init__(
        self,
        role: str,
        actor_class: type,
        kwargs: dict[str, Any],
        placement: Placement,
        count: int,
        deadline_s: float,
        restarts: Restarts | None = None,
    ) -> None:
        """Ask Ray for the actors; `await start()` makes them ready.

        `kwargs` go to each actor's `start` method (not to its constructor: what a constructor
        raises reaches the caller only as the text of an actor's death).  `deadline_s` holds for
        each call; starting has its own.  `restarts`: the run's; by default the group has its own.
        """
        self.role = role
        self.names = [f"{role}-{rank}" for rank in range(count)]
        self.deadline_s = self._start_deadline_s = deadline_s
        self.places: dict[str, stacks.Place] = {}  # by name, of those that have started
        self._kwargs = kwargs
        self._restarts = restarts or Restarts(RecoveryConfig())
        self._class: Any = ray.remote(actor_class)
        self._placement = placement
        self.handles: list[Any] = [self._create(rank) for rank in range(count)]

    def _create(self, rank: int) -> Any:
        return self._class.options(**self._placement.options(self.role, rank)).remote()

    async def _replace(self, rank: int) -> None:
        """A new process in an actor's place, whatever became of the former one.  Raises RoleError where Ray holds the
        former one's name for long."""
        self.places.pop(self.names[rank], None)
        ray.kill(self.handles[rank])
        end = asyncio.get_running_loop().time() + _NAME_S
        while True:
            try:
                self.handles[rank] = self._create(rank)
                return
            except ValueError as error:  # the name is the former one's still
                if asyncio.get_running_loop().time() > end:
                    raise RoleError(
                        f"{self.names[rank]} cannot be begun anew: {_NAME_S:g} s after it was killed Ray says: {error}"
                    ) from error
                await asyncio.sleep(0.1)

    async def _listen(self, rank: int, deadline_s: float) -> None:
        """Waits until the actor's process is up, and can be asked for its stack."""
        self.places[self.names[rank]] = await self.call(rank, "__ray_call__", stacks.listen, deadline_s=deadline_s)

    async def call(self, rank: int, method: str, *args: Any, deadline_s: float | None = None, **kwargs: Any) -> Any:
        """One actor's answer; errors and deadline as in `calls.call`."""
        deadline_s = deadline_s or self.deadline_s
        return await calls.call(
            self.handles[rank], method, *args, role=self.names[rank], deadline_s=deadline_s, **kwargs
        )

    async def everyone(self, method: str, *args: Any, deadline_s: float | None = None, **kwargs: Any) -> list[Any]:
        """The same call to every actor; their answers in order of rank."""
        ranks = range(len(self.handles))
        return await calls.gather([self.call(rank, method, *args, deadline_s=deadline_s, **kwargs) for rank in ranks])

    async def start(self, deadline_s: float) -> None:
        """Load the models; DeadlineError names every actor that is not ready in time."""
        raise NotImplementedError

    async def peak_memory(self) -> dict[str, float]:
        """`rayrlhf.environment.peak_memory` of the actor that held most."""
        held = await self.everyone("__ray_call__", _peak_memory)
        return {name: max(one.get(name, 0.0) for one in held) for name in held[0]}

    def stop(self) -> None:
        """End the actors' processes."""
        for handle in self.handles:
            ray.kill(handle)
        self.handles = []


def _peak_memory(_actor: Any) -> dict[str, float]:
    return environment.peak_memory()


class RankGroup(ActorGroup):
    """The ranks of one engine; rank 0 speaks for all."""

    async def start(self, deadline_s: float) -> None:
        """Every rank says where it could be met; all meet at rank 0's place and build the engine."""
        self._start_deadline_s = deadline_s
        ranks = range(len(self.handles))
        try:
            await calls.gather([self._listen(rank, deadline_s) for rank in ranks])
            address, port = (await self.everyone("offer_address", deadline_s=deadline_s))[0]
            given = (len(ranks), address, port, self.deadline_s)
            starts = [self.call(r, "start", r, *given, deadline_s=deadline_s, **self._kwargs) for r in ranks]
            await calls.gather(starts)
        except RoleError as error:
            raise _lost(error) from error

    async def restart(self) -> None:
        """New processes, with the models that training began with.  Raises StateLost."""
        try:
            await gather(*(self._replace(rank) for rank in range(len(self.handles))))
        except RoleError as error:
            raise _lost(error) from error
        await self.start(self._start_deadline_s)

    async def everyone(self, method: str, *args: Any, deadline_s: float | None = None, **kwargs: Any) -> list[Any]:
        """As ActorGroup's; StateLost where a rank failed."""
        try:
            return await super().everyone(method, *args, deadline_s=deadline_s, **kwargs)
        except RoleError as error:
            raise _lost(error) from error

    async def together(self, method: str, *args: Any) -> Any:
        """Every rank takes part with the same arguments, but that the rows of batches go to rank 0 alone
        (`EngineRank.whole`); rank 0's answer.  Raises StateLost where a rank failed."""
        of_first = [ray.put(arg) if isinstance(arg, Batch) else arg for arg in args]
        of_others = [ray.put(arg.rows(slice(0))) if isinstance(arg, Batch) else arg for arg in args]
        ranks = range(len(self.handles))
        try:
            answers = await calls.gather([self.call(n, method, *(of_others if n else of_first)) for n in ranks])
        except RoleError as error:
            raise _lost(error) from error
        return answers[0]

    async def save(self, directory: str) -> None:
        await self.together("save", directory)

    async def load(self, directory: str, lr_scale: float = 1.0) -> None:
        await self.together("load", directory, lr_scale)


def _lost(error: RoleError) -> StateLost:
    return error if isinstance(error, StateLost) else StateLost(str(error))


class PolicyGroup(RankGroup):
    """`roles.Policy` over the ranks of actors.policy.PolicyRank."""

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        return await self.together("logprobs", rollouts)

    async def reference_logprobs(self, rollouts: Rollouts) -> Tensor:
        return await self.together("reference_logprobs", rollouts)

    async def update(
        self, batch: PolicyBatch, step: int, kl_coefficient: float, texts: TextBatch | None = None
    ) -> Metrics:
        return await self.together("update", batch, step, kl_coefficient, texts)


class CriticGroup(RankGroup):
    """`roles.Critic` over the ranks of actors.critic.CriticRank."""

    async def values(self, rollouts: Rollouts) -> Values:
        return await self.together("values", rollouts)

    async def update(self, batch: CriticBatch, step: int) -> Metrics:
        return await self.together("update", batch, step)


class ReplicaGroup(ActorGroup):
    """Independent copies of a frozen model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As ActorGroup."""
        super().__init__(*args, **kwargs)
        self._is_ready = [False] * len(self.handles)
        self._locks = [asyncio.Lock() for _ in self.handles]

    async def start(self, deadline_s: float) -> None:
        self._start_deadline_s = deadline_s
        await calls.gather([self._start(index) for index in range(len(self.handles))])
        self._is_ready = [True] * len(self.handles)

    async def _start(self, index: int) -> None:
        """Make one replica ready for its calls."""
        await self._listen(index, self._start_deadline_s)
        await self.call(index, "start", deadline_s=self._start_deadline_s, **self._kwargs)

    async def everyone(self, method: str, *args: Any, deadline_s: float | None = None, **kwargs: Any) -> list[Any]:
        """As ActorGroup's, of each surely."""

        def asking(index: int) -> Callable[[], Awaitable[Any]]:
            return lambda: self.call(index, method, *args, deadline_s=deadline_s, **kwargs)

        return await calls.gather([self.surely(index, asking(index)) for index in range(len(self.handles))])

    async def surely(self, index: int, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask()`, a call to that replica, returns; asked again of a new process where it failed.

        Raises GaveUp where it failed too often, StateLost where the replica could not be given the policy's weights
        as the policy failed, and the user's errors.
        """
        while True:
            try:
                async with self._locks[index]:
                    if not self._is_ready[index]:
                        await self._replace(index)
                        await self._start(index)
                        self._is_ready[index] = True
                answer = await ask()
            except (StateLost, GaveUp):
                raise
            except RoleError as error:
                self._is_ready[index] = False
                await self._restarts.after(self.names[index], error)
            else:
                self._restarts.succeeded(self.names[index])
                return answer

    async def ask(self, index: int, method: str, *args: Any) -> Any:
        """`call`, surely."""
        return await self.surely(index, lambda: self.call(index, method, *args))

    async def shared_out(
        self, method: str, rollouts: Rollouts, columns: dict[str, list[Any]] | None = None
    ) -> list[Any]:
        """One part of the rows (and of `columns`, a value a row) for each replica, none for replicas beyond the
        number of rows; the answers in row order."""
        parts = torch.arange(len(rollouts)).tensor_split(max(1, min(len(self.handles), len(rollouts))))
        more: list[tuple[Any, ...]] = [
            () if columns is None else ({name: [values[n] for n in part] for name, values in columns.items()},)
            for part in parts
        ]
        return await calls.gather([self.ask(i, method, rollouts.rows(part), *more[i]) for i, part in enumerate(parts)])


class ReferenceGroup(ReplicaGroup):
    """`roles.Reference` over replicas of actors.reference.ReferenceReplica."""

    async def logprobs(self, rollouts: Rollouts) -> Tensor:
        return torch.cat(await self.shared_out("logprobs", rollouts))


class RewardGroup(ReplicaGroup):
    """`roles.Reward` over replicas of actors.reward.RewardReplica."""

    async def scores(self, rollouts: Rollouts, columns: dict[str, list[Any]] | None = None) -> Scores:
        """`columns`: of the prompts' rows, a value a row of `rollouts`, for a reward function."""
        return Scores.concat(await self.shared_out("scores", rollouts, columns))

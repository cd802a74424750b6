"""The rollout actor: a sampling engine in a process of its own, and the group of its replicas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray
from ray.exceptions import ObjectLostError
from torch import Tensor

from actors import calls
from actors.config import RolloutConfig, SamplingConfig
from actors.group import Placement, ReplicaGroup
from rayrlhf.batches import Part, Prompts, Rollouts
from rayrlhf.errors import RoleError, StateLost
from rayrlhf.restarts import Restarts
from rayrlhf.role_logs import LoggedRole
from rayrlhf.roles import Early

if TYPE_CHECKING:
    from actors.engines.base import Engine


class RolloutReplica(LoggedRole):
    """A Ray actor's class; ray.remote is applied by the group."""

    def start(self, folder: str, config: RolloutConfig, sampling: SamplingConfig, offload: bool = False) -> None:
        """Builds the engine over the Hugging Face folder and warms it up; with `offload` it sleeps between calls."""
        from actors.engines.base import build

        self._sampling, self._offload = sampling, offload
        self._engine: Engine = build(folder, config, sleeps=offload)
        if offload:
            self._engine.sleep()

    @contextmanager
    def _awake(self) -> Iterator[Engine]:
        if not self._offload:
            yield self._engine
            return
        self._engine.wake()
        try:
            yield self._engine
        finally:
            self._engine.sleep()

    def generate(self, prompts: Prompts, seed: int, part: Part | None = None) -> Rollouts:
        """One response a row of `prompts`, or that part of it."""
        with self._awake() as engine:
            return engine.generate(prompts, self._sampling, seed, part)

    def stream(self, prompts: Prompts, seed: int, part: Part | None, parts: int) -> Iterator[Rollouts]:
        """`generate`'s rows, as `Engine.stream` yields them."""
        with self._awake() as engine:
            yield from engine.stream(prompts, self._sampling, seed, part, parts)

    def load(self, version: int, buckets: list[ray.ObjectRef]) -> tuple[dict[str, str], int]:
        """Replaces the weights by those in `buckets` (refs of name -> TensorBytes), read one by one.

        Returns each tensor's digest, computed here on what was loaded, and the number of bytes.  Raises StateLost where
        a bucket is gone.
        """
        num_bytes = 0

        def read() -> Iterator[dict[str, Tensor]]:
            nonlocal num_bytes
            for ref in buckets:
                try:
                    bucket = ray.get(ref)
                except ObjectLostError as error:
                    raise StateLost(
                        f"the policy's weights of version {version} were lost from the object store before they were "
                        f"loaded: policy-0, which put them there, has died, or its node was lost.\n{error}"
                    ) from error
                num_bytes += sum(stored.data.nbytes for stored in bucket.values())
                yield {name: stored.tensor() for name, stored in bucket.items()}

        with self._awake() as engine:
            return engine.load_weights(version, read()), num_bytes

    def version(self) -> int:
        """Version of the weights the engine holds."""
        return self._engine.version


class RolloutGroup(ReplicaGroup):
    """`roles.Rollout` over replicas of RolloutReplica.

    `version` is that of the weights which all replicas hold, and `reload(index)` gives one of them these weights: a
    replica begun anew holds the folder's (None: so do all).  Both are set by actors/weight_sync.py.
    """

    def __init__(
        self,
        folder: str,
        config: RolloutConfig,
        sampling: SamplingConfig,
        placement: Placement,
        count: int,
        deadline_s: float,
        offload: bool = False,
        restarts: Restarts | None = None,
    ) -> None:
        """Asks Ray for `count` engines over the model in `folder`; `await start()` makes them ready.  With `offload`
        they sleep between calls."""
        kwargs = {"folder": folder, "config": config, "sampling": sampling, "offload": offload}
        super().__init__("rollout", RolloutReplica, kwargs, placement, count, deadline_s, restarts)
        self.version = 0
        self.reload: Callable[[int], Awaitable[None]] | None = None

    async def _start(self, index: int) -> None:
        await super()._start(index)
        if self.reload is not None:
            await self.reload(index)

    async def generate(
        self, prompts: Prompts, seed: int, part: Part | None = None, early: Early | None = None
    ) -> Rollouts:
        """Each replica gets contiguous rows; the answer is in row order."""
        count = max(1, min(len(self.handles), len(prompts)))
        parts = [None] * count if part is None else part.dealt(count)
        given = [(i, share, seed, parts[i]) for i, share in enumerate(prompts.dealt(count))]
        asked = [self._of(*one) if early is None else self._early(*one, early) for one in given]
        return Rollouts.concat(await calls.gather(asked))

    async def _of(self, index: int, prompts: Prompts, seed: int, part: Part | None) -> Rollouts:
        async def sample() -> Rollouts:
            rollouts: Rollouts = await self.call(index, "generate", prompts, seed, part)
            self._check_version(index, rollouts)
            return rollouts

        return await self.surely(index, sample)

    async def _early(self, index: int, prompts: Prompts, seed: int, part: Part | None, early: Early) -> Rollouts:
        """As `_of`; each row goes to `early.put` once, also where a new process has to sample all of them again."""
        given: set[int] = set()

        async def sample() -> Rollouts:
            found: list[Rollouts] = []

            def put(rollouts: Rollouts) -> None:
                self._check_version(index, rollouts)
                found.append(rollouts)
                numbers = rollouts.prompt_index.tolist()
                new = [row for row, number in enumerate(numbers) if number not in given]
                given.update(numbers)
                if new:
                    early.put(rollouts if len(new) == len(rollouts) else rollouts.rows(new))

            await self.call(index, "stream", prompts, seed, part, early.parts, put=put)
            rollouts = Rollouts.concat(found)
            row_of = {number: row for row, number in enumerate(rollouts.prompt_index.tolist())}
            return rollouts.rows([row_of[number] for number in prompts.prompt_index.tolist()])

        return await self.surely(index, sample)

    def _check_version(self, index: int, rollouts: Rollouts) -> None:
        """RoleError where other weights than the group's sampled."""
        sampled_by = set(rollouts.policy_version.tolist())
        if sampled_by != {self.version}:
            raise RoleError(
                f"{self.names[index]} sampled from weights of version {sorted(sampled_by)}, and {self.version} "
                "was published: it missed a publish"
            )

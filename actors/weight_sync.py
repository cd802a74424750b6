"""Weights on their way from the policy's ranks to the running rollout engines.

    policy-0                policy-1        object store            rollout-0      rollout-1
       | gather a bucket <------'                |                      |              |
       | put ----------------------------------> bucket 0               |              |
       | ...                                     bucket n               |              |
       | (refs, digests) -> publisher            |                      |              |
       |                        | load(version, refs) ----------------> | -----------> |
       |                        |                bucket by bucket ----> | -----------> |
       |                        | <---- digests of what was loaded ---- | ------------ |
       |                        compares; dropping the refs frees the buckets

consumes: the policy's weights.  waits for: every policy rank (ZeRO 3 gathers together), then every
rollout.  unblocked by: all digests being equal; a rollout with a differing one is begun anew.

A rollout that is begun anew later gets the same version once more, exported again: between two publishes the policy
stands still (until its next update, by when every rollout has answered), and no copy of the weights has to be kept.

Where rollouts sample while the policy learns (rayrlhf/sampling.py) the two halves are calls of their own: `export`,
and `load` when the rollouts' turn comes.  The policy has moved on by then, so the copy is kept until the next one is
loaded, for rollouts that are begun anew.  Its objects are policy-0's: with its process they are lost (StateLost).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from torch import Tensor

from actors import calls
from actors.group import ActorGroup
from actors.rollout import RolloutGroup
from rayrlhf.errors import RoleError
from rayrlhf.models.digest import tensor_digest
from rayrlhf.models.tensor_bytes import TensorBytes
from rayrlhf.roles import Metrics

BUCKET_BYTES = 256 * 2**20
Bucket = tuple[Any, dict[str, str]]  # object ref of {name: TensorBytes}, and each tensor's digest
Export = Callable[[], Awaitable[list[Bucket]]]


@dataclass(frozen=True)
class Copy:
    """Weights in the object store."""

    version: int
    buckets: list[Bucket]


class Publisher:
    """`roles.Publisher` over object store; its errors name the rollout and the first differing tensor."""

    def __init__(self, policy: ActorGroup, rollout: RolloutGroup, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._policy = policy
        self._rollout = rollout
        self._bucket_bytes = bucket_bytes

    async def publish(self, version: int) -> Metrics:
        """Every rollout engine holds the policy's weights as `version` when this returns."""
        begin = time.perf_counter()
        num_bytes = await send(self._export, self._rollout, version)
        seconds = time.perf_counter() - begin
        return {"sync/publish_s": seconds, "sync/bytes": float(num_bytes), "sync/version": float(version)}

    async def export(self, version: int) -> tuple[Copy, Metrics]:
        """The policy's weights as they are now, in the object store while the copy is held."""
        begin = time.perf_counter()
        copy = Copy(version, await self._export())
        return copy, {"sync/publish_s": time.perf_counter() - begin, "sync/version": float(version)}

    async def load(self, copy: Copy) -> None:
        """Every rollout engine holds the copy when this returns, also one that is begun anew later."""

        async def exported() -> list[Bucket]:
            return copy.buckets

        await send(exported, self._rollout, copy.version)

    async def _export(self) -> list[Bucket]:
        return (await self._policy.everyone("export_weights", self._bucket_bytes))[0]


async def publish_folder(folder: str, rollout: RolloutGroup, version: int, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Puts the model of a Hugging Face folder (same architecture) into the running engines.

    So evaluation samples from several models with one engine.  The model is read into this
    process, which gives its tensors the names that a trainer would.
    """
    from transformers import AutoModelForCausalLM

    from rayrlhf.models.pretrained import model_of

    async def export() -> list[Bucket]:
        model = model_of(AutoModelForCausalLM, folder, dtype="auto")
        return [put(bucket) for bucket in buckets_of(model.named_parameters(), bucket_bytes)]

    await send(export, rollout, version)


def put(bucket: dict[str, Tensor]) -> Bucket:
    """The bucket in the object store, with the digest of each tensor as it went in."""
    tensors = {name: tensor.detach().cpu() for name, tensor in bucket.items()}
    stored = ray.put({name: TensorBytes.of(tensor) for name, tensor in tensors.items()})
    return stored, {name: tensor_digest(tensor) for name, tensor in tensors.items()}


def buckets_of(tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in order, in dicts of at most `bucket_bytes` (a larger tensor alone)."""
    bucket: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > bucket_bytes:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor
        size += tensor.nbytes
    if bucket:
        yield bucket


async def send(export: Export, rollout: RolloutGroup, version: int) -> int:
    """Loads what `export` gives into every rollout, side by side, and compares digests; the number of bytes.

    Raises GaveUp where a rollout took something else each time, and what `export` raises.
    """
    rollout.reload = None  # one that is begun anew meanwhile is given this version below
    buckets = await export()
    replicas = range(len(rollout.handles))
    num_bytes = await calls.gather([rollout.surely(i, partial(_load, rollout, i, buckets, version)) for i in replicas])

    async def reload(index: int) -> None:
        await _load(rollout, index, await export(), version)

    rollout.version, rollout.reload = version, reload
    return num_bytes[0]


async def _load(rollout: RolloutGroup, index: int, buckets: Sequence[Bucket], version: int) -> int:
    """One rollout loads the buckets; the number of bytes.  Raises RoleError where it has other tensors then."""
    # in a list, so that Ray hands the refs over instead of fetching all buckets before the call; each rollout begins
    # with another bucket, for whoever asks later gets it also from those that have it by then
    first = index * len(buckets) // len(rollout.handles)
    refs = [ref for ref, _ in (*buckets[first:], *buckets[:first])]
    loaded, num_bytes = await rollout.call(index, "load", version, refs)
    for name, digest in ((name, digest) for _, digests in buckets for name, digest in digests.items()):
        if loaded.get(name) != digest:
            raise RoleError(
                f"{rollout.names[index]} loaded {name} with digest {loaded.get(name, 'none')}, but {digest} was sent "
                f"(version {version}): its weights are not the policy's. Likely cause: faulty memory, or something on "
                "the way changed the tensor"
            )
    return num_bytes

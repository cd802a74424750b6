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
rollout.  unblocked by: all digests being equal; a differing one raises.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray
from torch import Tensor

from actors.group import ActorGroup
from rayrlhf.errors import RoleError
from rayrlhf.models.digest import tensor_digest
from rayrlhf.roles import Metrics

BUCKET_BYTES = 256 * 2**20
Bucket = tuple[Any, dict[str, str]]  # object ref of {name: tensor}, and each tensor's digest


class Publisher:
    """`roles.Publisher` over object store; its errors name the rollout and the first differing tensor."""

    def __init__(self, policy: ActorGroup, rollout: ActorGroup, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._policy = policy
        self._rollout = rollout
        self._bucket_bytes = bucket_bytes

    async def publish(self, version: int) -> Metrics:
        """Every rollout engine holds the policy's weights as `version` when this returns."""
        begin = time.perf_counter()
        exports = await self._policy.everyone("export_weights", self._bucket_bytes)
        num_bytes = await send(exports[0], self._rollout, version)
        seconds = time.perf_counter() - begin
        return {"sync/publish_s": seconds, "sync/bytes": float(num_bytes), "sync/version": float(version)}


async def publish_folder(folder: str, rollout: ActorGroup, version: int, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Puts the model of a Hugging Face folder (same architecture) into the running engines.

    So evaluation samples from several models with one engine.  The model is read into this
    process, which gives its tensors the names that a trainer would.
    """
    from transformers import AutoModelForCausalLM

    from rayrlhf.models.pretrained import model_of

    model = model_of(AutoModelForCausalLM, folder, dtype="auto")
    buckets = [put(bucket) for bucket in buckets_of(model.named_parameters(), bucket_bytes)]
    await send(buckets, rollout, version)


def put(bucket: dict[str, Tensor]) -> Bucket:
    """The bucket in the object store, with the digest of each tensor as it went in."""
    tensors = {name: tensor.detach().cpu() for name, tensor in bucket.items()}
    return ray.put(tensors), {name: tensor_digest(tensor) for name, tensor in tensors.items()}


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


async def send(buckets: Sequence[Bucket], rollout: ActorGroup, version: int) -> int:
    """Loads the buckets into every rollout, side by side, and compares digests; the number of bytes.

    Raises RoleError.
    """
    refs = [ref for ref, _ in buckets]
    sent = {name: digest for _, digests in buckets for name, digest in digests.items()}
    # in a list, so that Ray hands the refs over instead of fetching all buckets before the call
    answers = await rollout.everyone("load", version, refs)
    for actor, (loaded, _) in zip(rollout.names, answers, strict=True):
        for name, digest in sent.items():
            if loaded.get(name) != digest:
                raise RoleError(
                    f"{actor} loaded {name} with digest {loaded.get(name, 'none')}, but {digest} was sent "
                    f"(version {version}): its weights are not the policy's. Likely cause: faulty memory, or "
                    "something on the way changed the tensor"
                )
    return answers[0][1]

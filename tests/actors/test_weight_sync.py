"""Weights published from a policy into running engines, over the object store."""

import asyncio
import os
import re
import signal
import time

import pytest
import ray
import torch
from ray._private.internal_api import memory_summary
from transformers import AutoModelForCausalLM

from actors.config import RolloutConfig, SamplingConfig
from actors.group import ActorGroup
from actors.rollout import RolloutGroup
from actors.weight_sync import Publisher, buckets_of, publish_folder, put
from rayrlhf.batches import Prompts
from rayrlhf.errors import GaveUp, RoleError
from rayrlhf.restarts import RecoveryConfig, Restarts
from tests.actors.test_engines import largest_gap, other_model
from tests.actors.test_rollout import Anywhere

SAMPLING = SamplingConfig(temperature=0.8, max_new_tokens=24)


class TwoRanks:
    """A policy's export over two ranks: every rank is called, only the first answers."""

    def start(self, folder, seed, fault=None):
        self.rank = int(ray.get_runtime_context().get_actor_name().split("-")[1])
        self.weights = dict(other_model(folder, seed).named_parameters())
        self.fault = fault
        self.calls = 0

    def export_weights(self, bucket_bytes):
        self.calls += 1
        if self.rank:
            return None
        exported = [put(bucket) for bucket in buckets_of(self.weights.items(), bucket_bytes)]
        if self.fault == "changed on the way":
            _, digests = exported[1]
            changed, _ = put({name: torch.zeros_like(self.weights[name]) for name in digests})
            exported[1] = (changed, digests)
        return exported

    def times_called(self):
        return self.calls


class Policy(ActorGroup):
    async def start(self, deadline_s):
        await self.everyone("start", deadline_s=deadline_s, **self._kwargs)


def run(folder, engine, replicas, body, fault=None, **settings):
    """`body(policy, rollout)` over two policy ranks and `replicas` engines."""

    async def main():
        kwargs = {"folder": folder, "seed": 5, "fault": fault}
        policy = Policy("policy", TwoRanks, kwargs, Anywhere(), 2, deadline_s=60)
        config = RolloutConfig(engine=engine, kv_cache_gib=0.25, **settings)
        rollout = RolloutGroup(folder, config, SAMPLING, Anywhere(), replicas, deadline_s=60)
        try:
            await asyncio.gather(policy.start(120), rollout.start(200))
            return await body(policy, rollout)
        finally:
            policy.stop()
            rollout.stop()

    return asyncio.run(main())


def batch():
    tokens = torch.randint(0, 256, (10, 4), generator=torch.Generator().manual_seed(0))
    return Prompts(tokens, torch.full((10,), 4), torch.arange(10))


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_every_replica_samples_from_what_was_published(ray_local, tiny_model, engine):
    folder = tiny_model("llama")

    async def body(policy, rollout):
        publisher = Publisher(policy, rollout, bucket_bytes=40_000)
        metrics = await publisher.publish(3)
        sampled = await rollout.generate(batch(), 0)
        calls, versions = await policy.everyone("times_called"), await rollout.everyone("version")
        await publish_folder(folder, rollout, 4)
        swapped = await rollout.generate(batch(), 0)
        return metrics, sampled, swapped, calls, versions

    metrics, sampled, swapped, calls, versions = run(folder, engine, 2, body)
    published = other_model(folder, 5)
    assert versions == [3, 3]
    assert calls == [1, 1]  # every rank takes part in the gather
    assert sampled.policy_version.tolist() == [3] * 10
    assert largest_gap(published, sampled, 0.8) < 1e-4
    assert metrics["sync/version"] == 3.0
    assert metrics["sync/bytes"] == sum(4 * p.numel() for p in published.parameters())
    assert 0 < metrics["sync/publish_s"] < 30
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert swapped.policy_version.tolist() == [4] * 10
    assert largest_gap(original, swapped, 0.8) < 1e-4


@pytest.mark.slow
def test_a_compiled_engine_samples_from_what_was_published(ray_local, tiny_model):
    """Its graph holds no weights of its own, also after a second publish into the running engine."""
    folder = tiny_model("llama")

    async def body(policy, rollout):
        first = await rollout.generate(batch(), 0)
        await Publisher(policy, rollout, bucket_bytes=40_000).publish(3)
        second = await rollout.generate(batch(), 0)
        await publish_folder(folder, rollout, 4)
        return first, second, await rollout.generate(batch(), 0)

    first, second, third = run(folder, "vllm", 1, body, enforce_eager=False)
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert largest_gap(original, first, 0.8) < 1e-4
    assert largest_gap(other_model(folder, 5), second, 0.8) < 1e-4
    assert largest_gap(original, second, 0.8) > 0.1, "the two models are told apart"
    assert largest_gap(original, third, 0.8) < 1e-4
    assert torch.equal(third.tokens, first.tokens)


def test_a_tensor_changed_on_the_way_is_named_with_its_rollout(ray_local, tiny_model):
    folder = tiny_model("llama")

    async def body(policy, rollout):
        rollout._restarts = Restarts(RecoveryConfig(max_restarts=0))
        await Publisher(policy, rollout, bucket_bytes=40_000).publish(1)

    names = [list(bucket) for bucket in buckets_of(other_model(folder, 5).named_parameters(), 40_000)]
    with pytest.raises(RoleError, match=rf"rollout-0 loaded {names[1][0]} with digest") as error:
        run(folder, "transformers", 1, body, fault="changed on the way")
    assert "version 1" in str(error.value)


@pytest.mark.slow
def test_a_rollout_that_died_samples_from_what_was_published_last(ray_local, tiny_model):
    folder = tiny_model("llama")

    async def body(policy, rollout):
        rollout._restarts = Restarts(RecoveryConfig(max_restarts=1, backoff_s=0.0), lambda _: None)
        publisher = Publisher(policy, rollout, bucket_bytes=40_000)
        await publisher.publish(3)
        whole = await rollout.generate(batch(), 0)
        os.kill(rollout.places["rollout-1"].pid, signal.SIGKILL)
        again = await rollout.generate(batch(), 0)
        os.kill(rollout.places["rollout-0"].pid, signal.SIGKILL)
        await publisher.publish(4)  # dead while it is to load
        versions = await rollout.everyone("version")
        rollout.reload = None  # a missed publish
        os.kill(rollout.places["rollout-0"].pid, signal.SIGKILL)
        with pytest.raises(GaveUp, match=r"rollout-0 sampled from weights of version \[0\], and 4 was published"):
            await rollout.generate(batch(), 0)
        return whole, again, versions, await policy.everyone("times_called")

    whole, again, versions, calls = run(folder, "transformers", 2, body)
    assert again.policy_version.tolist() == [3] * 10 and torch.equal(again.tokens, whole.tokens)
    assert torch.equal(again.sampled_logprobs, whole.sampled_logprobs)
    assert versions == [4, 4] and calls == [3, 3], "two publishes, and once more for the one that was begun anew"


def stored_objects():
    """Number of objects in this node's object store."""
    summary = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    return int(re.search(r"Plasma memory usage \S+ MiB, (\d+) objects", summary).group(1))


def test_the_object_store_keeps_no_published_version(ray_local, tiny_model):
    async def body(policy, rollout):
        before = stored_objects()
        exports = await policy.everyone("export_weights", 2**20)
        held = stored_objects() - before
        del exports
        for version in range(1, 6):
            await Publisher(policy, rollout).publish(version)
        deadline = time.monotonic() + 15
        while (left := stored_objects() - before) > 0 and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        return held, left

    held, left = run(tiny_model("llama"), "transformers", 1, body)
    assert held == 1  # the one bucket is seen while somebody holds it
    assert left <= 0


def test_buckets_hold_every_tensor_once_within_the_limit():
    tensors = [(str(i), torch.zeros(n)) for i, n in enumerate([10, 10, 100, 1, 1])]  # 4 bytes an element
    buckets = list(buckets_of(tensors, 80))
    assert [list(bucket) for bucket in buckets] == [["0", "1"], ["2"], ["3", "4"]]
    assert list(buckets_of([], 80)) == []

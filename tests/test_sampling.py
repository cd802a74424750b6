"""The order of versions when sampling runs ahead of training, with fakes of engine and publisher."""

import asyncio
import random

import pytest
import torch

from rayrlhf.batches import Prompts, Rollouts
from rayrlhf.sampling import Ahead, OnPolicy
from rayrlhf.stream import Stream
from tests.fakes import FakeRoles, prompts

STEPS = 7


class Slow(FakeRoles):
    """Generation and publishing take random times; no weights may change while a batch is being sampled."""

    def __init__(self, seed: int, fails_at: int | None = None) -> None:
        super().__init__()
        self.random, self.fails_at, self.generated, self.is_busy = random.Random(seed), fails_at, 0, False

    async def generate(self, prompts: Prompts, seed: int) -> Rollouts:
        assert not self.is_busy
        self.is_busy, self.generated = True, self.generated + 1
        try:
            if self.generated == self.fails_at:
                raise RuntimeError("the engine broke")
            await asyncio.sleep(self.random.uniform(0, 0.004))
            return await super().generate(prompts, seed)
        finally:
            self.is_busy = False

    async def load(self, copy):
        assert not self.is_busy, "weights changed within a batch"
        await asyncio.sleep(self.random.uniform(0, 0.004))
        await super().load(copy)


def stream() -> Stream[Prompts]:
    return Stream(lambda first, last: (prompts(2, first=2 * n) for n in range(first, last)), 0, STEPS)


def ahead(fake: FakeRoles, staleness: int) -> Ahead:
    return Ahead(fake, fake, stream(), 7, staleness, STEPS)


async def steps(sampler, fake: Slow, first: int, last: int, settle_at: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """(version, number of the batch) of each step; the policy learns 0.125 a step, in random time."""
    found = []
    for step in range(first, last + 1):
        rollouts = (await sampler.next(step)).rollouts
        version = set(rollouts.policy_version.tolist())
        assert len(version) == 1
        found.append((version.pop(), int(rollouts.prompt_index[0]) // 2))
        await asyncio.sleep(fake.random.uniform(0, 0.004))
        fake.logprob += 0.125
        await sampler.publish(step)
        if step in settle_at:
            await sampler.settle()
            assert fake.version == step
            before = fake.generated
            await asyncio.sleep(0.006)
            assert fake.version == step and fake.generated == before, "a settled sampler stands still"
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("staleness", range(4))
async def test_versions_do_not_depend_on_time(staleness, seed):
    fake = Slow(seed)
    sampler = ahead(fake, staleness) if staleness else OnPolicy(fake, fake, stream(), 7)
    await sampler.begin(0, 0)
    found = await steps(sampler, fake, 1, STEPS, settle_at=(2, 5))
    await sampler.close()
    assert found == [(max(0, step - 1 - staleness), step - 1) for step in range(1, STEPS + 1)]
    assert fake.generated == STEPS, "nothing is sampled for steps after the last"


@pytest.mark.parametrize("staleness", [1, 3])
async def test_saved_and_begun_again_is_as_if_nothing_had_been(tmp_path, staleness):
    whole = Slow(0)
    one = ahead(whole, staleness)
    await one.begin(0, 0)
    await steps(one, whole, 1, 3)
    await one.save(str(tmp_path))
    later = [(await one.next(4)).rollouts]
    await one.close()
    fake = Slow(1)
    fake.logprob = -1.0 + 3 * 0.125
    other = ahead(fake, staleness)
    await other.begin(3, 3, str(tmp_path))
    assert other.used == 3
    again = (await other.next(4)).rollouts
    for name in Rollouts.SHAPES:
        assert torch.equal(getattr(again, name), getattr(later[0], name)), name
    fake.logprob += 0.125
    await other.publish(4)
    found = await steps(other, fake, 5, STEPS)
    await other.close()
    assert found == [(max(0, step - 1 - staleness), step - 1) for step in range(5, STEPS + 1)]


async def test_what_was_sampled_is_dropped_where_it_begins_without_a_directory():
    fake = Slow(0)
    sampler = ahead(fake, 2)
    await sampler.begin(0, 0)
    await steps(sampler, fake, 1, 3)
    await sampler.begin(2, 3)  # rolled back to step 2, on after batch 3
    assert await steps(sampler, fake, 3, 5) == [(2, 3), (2, 4), (2, 5)]
    await sampler.close()


async def test_what_sampling_raised_comes_out_of_next_and_of_settle():
    fake = Slow(0, fails_at=3)
    sampler = ahead(fake, 1)
    await sampler.begin(0, 0)
    await steps(sampler, fake, 1, 2)
    with pytest.raises(RuntimeError, match="the engine broke"):
        await sampler.next(3)
    with pytest.raises(RuntimeError, match="the engine broke"):
        await sampler.settle()
    await sampler.close()


async def test_stop_ends_the_sampling_at_once_and_next_says_so():
    fake = Slow(0)
    sampler = ahead(fake, 1)
    await sampler.begin(0, 0)
    await sampler.stop()
    before = fake.generated
    await asyncio.sleep(0.01)
    assert fake.generated == before
    with pytest.raises(RuntimeError, match="not begun, or was stopped"):
        await sampler.next(1)


def test_staleness_0_is_not_ahead():
    with pytest.raises(ValueError, match="max_staleness is 0"):
        ahead(FakeRoles(), 0)

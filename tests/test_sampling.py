"""The order of versions when sampling runs ahead of training, with fakes of engine and publisher."""

import asyncio
import random
from dataclasses import replace

import pytest
import torch

from rayrlhf.batches import Part, Prompts, Rollouts
from rayrlhf.sampling import Ahead, OnPolicy
from rayrlhf.stream import Stream
from tests.fakes import FakeRoles, prompts

STEPS = 7


class Slow(FakeRoles):
    """Generation and publishing take random times; no weights may change while a batch is being sampled."""

    def __init__(self, seed: int, fails_at: int | None = None) -> None:
        super().__init__()
        self.random, self.fails_at, self.generated, self.is_busy = random.Random(seed), fails_at, 0, False

    async def generate(self, prompts: Prompts, seed: int, part: Part | None = None) -> Rollouts:
        assert not self.is_busy
        self.is_busy, self.generated = True, self.generated + 1
        try:
            if self.generated == self.fails_at:
                raise RuntimeError("the engine broke")
            await asyncio.sleep(self.random.uniform(0, 0.004))
            return await super().generate(prompts, seed, part)
        finally:
            self.is_busy = False

    async def load(self, copy):
        assert not self.is_busy, "weights changed within a batch"
        await asyncio.sleep(self.random.uniform(0, 0.004))
        await super().load(copy)


async def rows_of(sampler, step: int) -> Rollouts:
    return Rollouts.concat([part.rollouts async for part in sampler.next(step)])


def stream() -> Stream[Prompts]:
    return Stream(lambda first, last: (prompts(2, first=2 * n) for n in range(first, last)), 0, STEPS)


def ahead(fake: FakeRoles, staleness: int) -> Ahead:
    return Ahead(fake, fake, stream(), 7, staleness, STEPS, max_new_tokens=3)


async def steps(sampler, fake: Slow, first: int, last: int, settle_at: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """(version, number of the batch) of each step; the policy learns 0.125 a step, in random time."""
    found = []
    for step in range(first, last + 1):
        rollouts = await rows_of(sampler, step)
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
    later = [await rows_of(one, 4)]
    await one.close()
    fake = Slow(1)
    fake.logprob = -1.0 + 3 * 0.125
    other = ahead(fake, staleness)
    await other.begin(3, 3, str(tmp_path))
    assert other.used == 3
    again = await rows_of(other, 4)
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
        await rows_of(sampler, 3)
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
        await rows_of(sampler, 1)


def test_staleness_0_is_not_ahead():
    with pytest.raises(ValueError, match="max_staleness is 0"):
        ahead(FakeRoles(), 0)


LONGEST, PART = 5, 2  # tokens: up to three parts of a response


class Lengths(Slow):
    """Responses of 1, 2, ... 5 tokens in turn, of which those of 5 never end by themselves."""

    def length_of(self, index: int) -> int:
        return 1 + index % LONGEST

    async def generate(self, prompts: Prompts, seed: int, part: Part | None = None) -> Rollouts:
        found = await super().generate(prompts, seed, part)
        return replace(found, finished=found.finished & (found.prompt_index % LONGEST != LONGEST - 1))


def in_parts(fake: Slow, staleness: int) -> Ahead:
    return Ahead(fake, fake, stream(), 7, staleness, STEPS, LONGEST, PART)


def versions(rollouts: Rollouts) -> list[list[int]]:
    """Those that sampled each response's tokens: the fake policy's log-prob is -1 + 0.125 a step."""
    found = (rollouts.sampled_logprobs + 1) / 0.125
    return [row[mask].int().tolist() for row, mask in zip(found, rollouts.response_mask, strict=True)]


async def parts(sampler: Ahead, fake: Slow, first: int, last: int, settle_at: tuple[int, ...] = ()) -> list[object]:
    found: list[object] = []
    for step in range(first, last + 1):
        (sampled,) = [part async for part in sampler.next(step)]
        rollouts = sampled.rollouts
        assert torch.equal(rollouts.lengths, prompts(2).lengths + rollouts.response_mask.sum(1))
        assert rollouts.finished.tolist() == [index % LONGEST < LONGEST - 1 for index in rollouts.prompt_index.tolist()]
        found.append((versions(rollouts), rollouts.policy_version.tolist(), sampled.metrics["sync/partial_share"]))
        await asyncio.sleep(fake.random.uniform(0, 0.004))
        fake.logprob += 0.125
        await sampler.publish(step)
        if step in settle_at:
            await sampler.settle()
            assert fake.version == step
    return found


def expected_parts(staleness: int) -> list[object]:
    """Token t of a response of step j is of the turn of step j + t // 2."""
    found: list[object] = []
    for step in range(1, STEPS + 1):
        turns = [[step + t // PART for t in range(1 + index % LONGEST)] for index in (2 * step - 2, 2 * step - 1)]
        by_token = [[max(0, turn - 1 - staleness) for turn in row] for row in turns]
        found.append((by_token, [row[0] for row in by_token], sum(len(row) > PART for row in turns) / 2))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("staleness", [2, 3, 4])
async def test_each_part_of_a_response_is_sampled_by_its_turns_weights(staleness, seed):
    fake = Lengths(seed)
    sampler = in_parts(fake, staleness)
    await sampler.begin(0, 0)
    found = await parts(sampler, fake, 1, STEPS, settle_at=(2, 5))
    await sampler.close()
    assert found == expected_parts(staleness)
    # prompts 12 and 13, of the last step, have responses of 3 and 4 tokens: one turn after it
    assert fake.generated == STEPS + 1


@pytest.mark.parametrize("at", range(1, STEPS))
@pytest.mark.parametrize("staleness", [2, 4])
async def test_cut_responses_are_saved_and_go_on(tmp_path, staleness, at):
    fake = Lengths(0)
    sampler = in_parts(fake, staleness)
    await sampler.begin(0, 0)
    await parts(sampler, fake, 1, at)
    await sampler.save(str(tmp_path))
    await sampler.close()
    fake = Lengths(1)
    fake.logprob = -1 + at * 0.125
    sampler = in_parts(fake, staleness)
    await sampler.begin(at, at, str(tmp_path))
    found = await parts(sampler, fake, at + 1, STEPS)
    await sampler.close()
    assert found == expected_parts(staleness)[at:]


def test_a_part_must_not_come_after_its_step():
    with pytest.raises(ValueError, match="max_staleness is 1, but 2 parts may follow"):
        in_parts(Lengths(0), 1)

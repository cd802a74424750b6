"""What a call puts while it runs."""

import asyncio
from contextlib import aclosing

import pytest

from rayrlhf.side_by_side import put_by


async def test_it_comes_in_order_and_before_the_call_is_over():
    seen = []

    async def call(put):
        for number in range(3):
            put(number)
            seen.append(("put", number))
            await asyncio.sleep(0.01)
        seen.append("over")

    async for number in put_by(call):
        seen.append(("taken", number))
    assert seen == [(what, number) for number in range(3) for what in ("put", "taken")] + ["over"]


async def test_what_the_call_raises_comes_after_what_it_has_put():
    async def call(put):
        put("one")
        raise RuntimeError("broke")

    found = []
    with pytest.raises(RuntimeError, match="broke"):
        async for one in put_by(call):
            found.append(one)
    assert found == ["one"]


async def test_left_early_the_call_is_over_when_it_is_closed():
    over = []

    async def call(put):
        try:
            put(1)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            over.append(True)

    async with aclosing(put_by(call)) as found:
        async for _ in found:
            break
    assert over == [True]

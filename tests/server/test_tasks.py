from __future__ import annotations

import asyncio

import pytest

from server.tasks import cancel_and_wait

pytestmark = pytest.mark.anyio


async def test_tasks_that_swallow_a_cancellation_are_cancelled_again() -> None:
    lost: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            lost.append("once")
        await asyncio.sleep(3600)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await cancel_and_wait([task])
    assert task.cancelled() and lost == ["once"]


async def test_no_task_outlives_a_cancelled_caller() -> None:
    ended = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            try:
                await asyncio.sleep(0.05)
            finally:
                ended.set()
                raise ArithmeticError("never retrieved")

    inner = asyncio.create_task(slow())
    await asyncio.sleep(0)
    outer = asyncio.create_task(cancel_and_wait([inner]))
    await asyncio.sleep(0)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert ended.is_set() and inner.done()

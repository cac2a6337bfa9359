from __future__ import annotations

import asyncio

import pytest

from server.worker.backpressure import Backpressure, JobAborted

pytestmark = pytest.mark.anyio


async def test_a_worker_waits_for_its_reader() -> None:
    pressure = Backpressure(ahead=2, patience_s=10.0)
    pressure.published(0)
    await pressure.wait_for_reader()
    pressure.published(1)
    waiting = asyncio.create_task(pressure.wait_for_reader())
    await asyncio.sleep(0)
    assert not waiting.done()
    pressure.read(0)
    await asyncio.wait_for(waiting, 5)


async def test_a_stalled_reader_loses_its_job() -> None:
    pressure = Backpressure(ahead=1, patience_s=0.01)
    pressure.published(0)
    with pytest.raises(JobAborted, match=r"0\.01 s"):
        await pressure.wait_for_reader()


async def test_acknowledgements_out_of_order_never_go_back() -> None:
    pressure = Backpressure(ahead=2, patience_s=0.01)
    pressure.published(5)
    pressure.read(5)
    pressure.read(3)
    await pressure.wait_for_reader()

from __future__ import annotations

import asyncio

import pytest

from server.worker.backpressure import Backpressure, JobAborted

pytestmark = pytest.mark.anyio


async def test_a_worker_waits_for_its_reader_and_goes_on_with_it() -> None:
    pace = Backpressure(ahead=2, patience_s=10.0)
    pace.made(0)
    await pace.room()
    pace.made(1)
    waiting = asyncio.create_task(pace.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    pace.read(0)
    await asyncio.wait_for(waiting, 5)


async def test_a_reader_that_stands_still_loses_the_job() -> None:
    pace = Backpressure(ahead=1, patience_s=0.01)
    pace.made(0)
    with pytest.raises(JobAborted, match=r"0\.01 s"):
        await pace.room()


async def test_news_out_of_order_never_go_back() -> None:
    pace = Backpressure(ahead=2, patience_s=0.01)
    pace.made(5)
    pace.read(5)
    pace.read(3)
    await pace.room()

"""Whose offer is read next."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from server.webrtc.peers import Peers


@pytest.mark.anyio
async def test_offers_of_one_client_do_not_hold_up_another_s() -> None:
    peers = Peers()

    async def hold(client: str, until: asyncio.Event) -> None:
        async with peers.turn(client):
            await until.wait()

    done = asyncio.Event()
    flood = [asyncio.create_task(hold("flooding", done)) for _ in range(20)]
    await asyncio.sleep(0)
    async with AsyncExitStack() as stack, asyncio.timeout(2):
        await stack.enter_async_context(peers.turn("other"))
        await stack.enter_async_context(peers.turn("third"))
    done.set()
    async with asyncio.timeout(2):
        await asyncio.gather(*flood)

"""asyncio tasks that end when they should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

_RETRY_S = 0.2


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` as a task while the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await cancel_and_wait([task])


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel ``tasks`` and wait until all have ended; read their results before.

    Cancels repeatedly: sessions have outlived a single cancellation, perhaps because ``wait_for``
    before Python 3.12 can lose one that arrives together with its result. A caller that is itself
    cancelled still waits, so that no task outlives it, and then raises ``CancelledError``.
    """
    every = list(tasks)
    pending, cancelled = set(every), False
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=_RETRY_S)
        except asyncio.CancelledError:
            cancelled = True
            pending = {task for task in pending if not task.done()}
    for task in every:
        if not task.cancelled():
            task.exception()  # or asyncio would log it as never retrieved
    if cancelled:
        raise asyncio.CancelledError

"""Ending asyncio tasks for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.2


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel and wait, so that nothing of them is left; results were looked at before.

    Sessions were seen to outlive a single cancellation, perhaps since ``wait_for`` before Python
    3.12 can lose one that comes with its result: so, again. Who is cancelled himself meanwhile
    waits on, for else his tasks would go on without him, and then says so.
    """
    every = list(tasks)
    left, called_off = set(every), False
    while left:
        for task in left:
            task.cancel()
        try:
            _, left = await asyncio.wait(left, timeout=_AGAIN_S)
        except asyncio.CancelledError:
            called_off = True
            left = {task for task in left if not task.done()}
    for task in every:
        if not task.cancelled():
            task.exception()  # else it would be logged as one that nobody looked at
    if called_off:
        raise asyncio.CancelledError

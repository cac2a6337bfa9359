"""Ending asyncio tasks for sure. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.2


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel and wait, so that nothing of them is left; results were looked at before.

    Sessions were seen to outlive a single cancellation, perhaps since ``wait_for`` before Python
    3.12 can lose one that comes with its result: so, again.
    """
    every = list(tasks)
    left = set(every)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*every, return_exceptions=True)

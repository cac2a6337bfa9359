"""The room that a kept video takes: expected before it is made, measured while it is."""

from __future__ import annotations

from server.broker import estimates, messages
from server.broker.consumer import Claim, JobConsumer

_MORE_BYTES = 8 << 20  # reserved at a time where the estimate was too low


class KeptVideo:
    """Keeps what is reserved for the video of ``claim`` above what is stored of it."""

    def __init__(self, consumer: JobConsumer, claim: Claim, size: int) -> None:
        """``size``: the long side, pixels."""
        self._consumer, self._claim, self._size = consumer, claim, size
        self.stored_bytes = claim.stored_bytes
        self._reserved_bytes = 0

    async def make_room(self, event: messages.Progress) -> None:
        """Return once there is room for the event's bytes, and for all that is expected.

        Raises `ServiceError` ``busy`` or ``too_large`` when there is none.
        """
        if isinstance(event, messages.Started) and event.total_s:
            expected = estimates.video_bytes(event.total_s, self._size)
            await self._reserve(max(expected, self.stored_bytes))
        if isinstance(event, messages.Started | messages.JobFragment):
            self.stored_bytes += len(event.data)
        if self.stored_bytes > self._reserved_bytes:
            await self._reserve(self.stored_bytes + _MORE_BYTES)

    async def _reserve(self, video_bytes: int) -> None:
        await self._consumer.reserve_video(self._claim, video_bytes)
        self._reserved_bytes = video_bytes

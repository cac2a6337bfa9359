"""A kept video: where its fragments go, and the room that it takes."""

from __future__ import annotations

from server.broker import estimates, messages
from server.broker.consumer import Claim, JobConsumer

_MORE_BYTES = 8 << 20  # reserved at a time where the estimate was too low


class KeptVideo:
    """Stores the video of ``claim``, and keeps what is reserved for it above what is stored."""

    def __init__(
        self, consumer: JobConsumer, claim: Claim, request: messages.AnimateRequest
    ) -> None:
        self._consumer, self._claim, self._request = consumer, claim, request
        self.stored_bytes = claim.stored_bytes
        self._reserved_bytes = self._in_file = 0

    async def store(self, event: messages.Progress) -> messages.Progress:
        """Make room for the event's bytes, and for all that is expected; return what to publish.

        That is the event without its bytes, where they go to a file. Raises `ServiceError`
        ``busy`` or ``too_large`` when there is no room.
        """
        if not isinstance(event, messages.Started | messages.JobFragment):
            return event
        if isinstance(event, messages.Started) and event.total_s:
            expected = estimates.video_bytes(event.total_s, self._request.options.size)
            await self._reserve(max(expected, self.stored_bytes))
        self.stored_bytes += len(event.data)
        if self.stored_bytes > self._reserved_bytes:
            await self._reserve(self.stored_bytes + _MORE_BYTES)
        if isinstance(event, messages.Started) or not self._request.in_folder:
            return event
        stored = await self._consumer.store(self._claim, event.data, self._in_file)
        self._in_file += len(event.data)
        return event.model_copy(update={"data": b"", "stored": stored})

    async def _reserve(self, video_bytes: int) -> None:
        await self._consumer.reserve_video(self._claim, video_bytes)
        self._reserved_bytes = video_bytes

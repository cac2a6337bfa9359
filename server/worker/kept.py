"""A kept video: where its fragments go, and the room that it takes."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from concurrent.futures import Executor
from typing import BinaryIO, cast

from media.boxes import with_duration
from server.broker import estimates, messages, videos
from server.broker.consumer import JobConsumer
from server.broker.leases import Claim
from server.worker.marks import Marks

_MORE_BYTES = 8 << 20  # reserved at a time where the estimate was too low


class KeptVideo:
    """Stores the video of ``claim``, and keeps what is reserved for it above what is stored."""

    def __init__(
        self, consumer: JobConsumer, claim: Claim, request: messages.AnimateRequest
    ) -> None:
        self._consumer, self._claim, self._request = consumer, claim, request
        self.stored_bytes = claim.stored_bytes
        self._reserved_bytes = -1  # not known yet
        self._in_file = 0

    async def store(self, event: messages.Progress) -> messages.Progress:
        """Make room for the event's bytes, and for all that is expected; return what to publish.

        That is the event without its bytes, where they go to a file. Raises `ServiceError`
        ``busy`` or ``too_large`` when there is no room.
        """
        if not isinstance(event, messages.Started | messages.JobFragment):
            return event
        if isinstance(event, messages.Started) and event.total_s:
            expected = estimates.output_bytes(event.total_s, self._request.options)
            await self._reserve(max(expected, self.stored_bytes))
        if self._reserved_bytes < 0:
            self._reserved_bytes = await self._consumer.reserved_video(self._claim)
        self.stored_bytes += len(event.data)
        if self.stored_bytes > self._reserved_bytes:
            await self._reserve(self.stored_bytes + _MORE_BYTES)
        if isinstance(event, messages.Started) or not self._request.in_folder:
            return event
        stored = await self._consumer.store(self._claim, event.data, self._in_file)
        self._in_file += len(event.data)
        return event.model_copy(update={"data": b"", "stored": stored})

    async def indexed(
        self, done: messages.JobDone, marks: Marks, pool: Executor
    ) -> messages.JobDone:
        """``done`` with what readers of the finished video need, see `messages.JobDone`."""
        connection, job_id = self._consumer.connection, self._claim.job_id
        is_video = self._request.options.output == "video"
        credentials = marks.credentials if is_video else None
        init, index = b"", list[tuple[str, int]]()
        with self._scratch() as video:
            async for event in videos.published_video(connection, job_id):
                if isinstance(event, messages.Started):
                    init = event.data
                    if is_video:
                        init = with_duration(init, done.duration_s)
                    video.write(init)
                elif event.stored is not None:
                    index.append(event.stored)
                    if credentials is not None:
                        in_folder = self._request.in_folder
                        data = await videos.read_fragment(
                            connection, job_id, event.stored, in_folder=in_folder
                        )
                        await asyncio.to_thread(video.write, data or b"")
            if credentials is not None:
                loop = asyncio.get_running_loop()
                init = await loop.run_in_executor(pool, self._signed_init, marks, video, len(init))
        return done.model_copy(update={"init": init, "index": messages.pack_index(index)})

    def _signed_init(self, marks: Marks, video: BinaryIO, init_bytes: int) -> bytes:
        """The init segment of ``video`` when it is signed; all that follows stays as it is."""
        size = video.seek(0, os.SEEK_END)
        video.seek(0)
        with self._scratch() as signed:
            marks.sign(video, signed)
            added = signed.seek(0, os.SEEK_END) - size
            signed.seek(0)
            return signed.read(init_bytes + added)

    def _scratch(self) -> BinaryIO:
        """A nameless file in memory; on the shared folder's disk for a video that is there."""
        folder = self._consumer.connection.folder
        if not self._request.in_folder or folder is None:
            return io.BytesIO()
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder.path))

    async def _reserve(self, video_bytes: int) -> None:
        await self._consumer.reserve_video(self._claim, video_bytes)
        self._reserved_bytes = video_bytes

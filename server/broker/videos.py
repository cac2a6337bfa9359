"""Kept videos: what is stored of one, in Redis or in the shared folder, and how it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import KW_ONLY, dataclass

from server.broker import messages, redis

_READ_BATCH = 32  # events read at a time


@dataclass(frozen=True)
class FinishedVideo:
    """``init`` segment and fragments, see `messages.pack_index`.

    ``warnings`` name what was repaired in the sound.
    """

    seed: int
    init: bytes
    fragments: tuple[tuple[str, int], ...]
    _: KW_ONLY
    warnings: tuple[str, ...] = ()
    in_folder: bool = False

    @property
    def size(self) -> int:
        """Bytes of the whole video."""
        return len(self.init) + sum(size for _, size in self.fragments)


async def finished_video(connection: redis.Connection, job_id: str) -> FinishedVideo | None:
    """The finished video of a job whose video is kept, else ``None``."""
    names = ("request", "init", "index", "warnings")
    text, init, index, warnings = await connection.redis.hmget(redis.job_key(job_id), names)
    if text is None or init is None or index is None:
        return None
    request = messages.unpack_request(text)
    assert isinstance(request, messages.AnimateRequest)
    return FinishedVideo(
        request.seed,
        init,
        tuple(messages.unpack_index(index)),
        warnings=lines(warnings),
        in_folder=request.in_folder,
    )


async def read_video(
    connection: redis.Connection, job_id: str, video: FinishedVideo, *, part: range
) -> AsyncIterator[bytes]:
    """Yield the bytes ``part`` of a finished video; fewer if it is deleted meanwhile."""
    if part.start < len(video.init):
        yield video.init[part.start : part.stop]
    at = len(video.init)
    for stored in video.fragments:
        if at >= part.stop:
            return
        if at + stored[1] > part.start:
            data = await read_fragment(connection, job_id, stored, in_folder=video.in_folder)
            if data is None:
                return
            yield data[max(0, part.start - at) : part.stop - at]
        at += stored[1]


async def read_fragment(
    connection: redis.Connection, job_id: str, stored: tuple[str, int], *, in_folder: bool
) -> bytes | None:
    """A fragment by its entry and size; ``None`` if it was deleted."""
    entry, size = stored
    if not in_folder:
        found = await connection.redis.xrange(redis.out_key(job_id), entry, entry)
        return bytes(found[0][1][b"b"]) if found else None
    if connection.folder is None:
        return None
    start, _, number = entry.partition("-")
    name = messages.video_file(int(number))
    return await connection.folder.read(job_id, name, int(start), size)


async def published_video(
    connection: redis.Connection, job_id: str
) -> AsyncIterator[messages.Started | messages.JobFragment]:
    """What has been published of a kept video, with its data unless that is in the folder.

    Each fragment's ``stored`` is set.
    """
    start = "-"
    while True:
        entries = await connection.redis.xrange(redis.out_key(job_id), min=start, count=_READ_BATCH)
        for entry, fields in entries:
            event = messages.unpack_event(fields[b"m"], fields[b"b"])
            if isinstance(event, messages.JobFragment) and event.stored is None:
                stored = entry.decode(), len(event.data)
                event = event.model_copy(update={"stored": stored})
            if isinstance(event, messages.Started | messages.JobFragment):
                yield event
        if len(entries) < _READ_BATCH:
            return
        start = f"({entries[-1][0].decode()}"


def lines(text: bytes | None) -> tuple[str, ...]:
    """The lines of a field that may be missing."""
    return tuple(text.decode().splitlines()) if text else ()

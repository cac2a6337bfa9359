"""One live session as a client holds it: speech goes in at its own pace, fragments come out.

Fragments are not decoded, only their boxes checked, so that many sessions cost little.
"""

from __future__ import annotations

import asyncio
import struct
import time
import wave
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fada_client import AsyncStream, ConnectionLost, FadaError, Fragment, Ready
from fada_client.wire import message, stream_url
from websockets.asyncio.client import connect

CHUNK_S = 0.02  # a microphone's worklet hands over about so much at once


@dataclass(frozen=True)
class Voice:
    """Mono 16-bit PCM, repeated endlessly."""

    rate: int
    pcm: bytes

    @classmethod
    def read(cls, path: Path) -> Voice:
        """A WAV file. Raises ``ValueError`` unless it is mono with 16 bits a sample."""
        with wave.open(str(path)) as file:
            channels, width = file.getnchannels(), file.getsampwidth()
            if (channels, width) != (1, 2):
                raise ValueError(
                    f"{path} has {channels} channels of {8 * width} bits, expected 1 of 16"
                )
            return cls(file.getframerate(), file.readframes(file.getnframes()))

    def chunks(self, seconds: float, chunk_s: float) -> Iterator[bytes]:
        """The first ``seconds`` of the endless voice in pieces of ``chunk_s``."""
        size = 2 * round(chunk_s * self.rate)
        at = 0
        for _ in range(round(seconds / chunk_s)):
            piece = self.pcm[at : at + size]
            while len(piece) < size:
                piece += self.pcm[: size - len(piece)]
            at = (at + size) % len(self.pcm)
            yield piece


@dataclass(frozen=True)
class Seen:
    """One fragment: its place in the video, and when it came (monotonic seconds)."""

    start_s: float
    duration_s: float
    speech: bool
    size: int
    at_s: float


@dataclass
class Record:
    """What one session saw. ``trouble``: an error's code, or how the connection was lost."""

    asked_s: float = 0.0
    ready_s: float | None = None
    spoke_s: float | None = None
    fragments: list[Seen] = field(default_factory=list)
    trouble: str | None = None
    lag_s: float = 0.0  # the largest delay of a chunk of sound: this process was too slow


class BrokenFragmentError(ValueError):
    """Bytes other than one ``moof`` and one ``mdat``."""


def check_fragment(blob: bytes) -> None:
    """Raises `BrokenFragmentError` unless ``blob`` is exactly one ``moof`` and one ``mdat``."""
    kinds, at = [], 0
    while at + 8 <= len(blob):
        size, kind = struct.unpack_from(">I4s", blob, at)
        kinds.append(kind)
        at += size if size >= 8 else len(blob) + 1  # smaller than its own header
    if kinds != [b"moof", b"mdat"] or at != len(blob):
        raise BrokenFragmentError(f"a fragment of {len(blob)} bytes has the boxes {kinds}")


async def hold(
    url: str,
    start: dict[str, Any],
    voice: Voice,
    *,
    seconds: float,
    headers: Mapping[str, str] | None = None,
) -> Record:
    """A conversation: speak for ``seconds`` in real time from `Ready` on, then end.

    ``url``: of the service, ``http://…``; ``start``: fields of the message of that name;
    ``headers``: of the connection, such as an API key.
    """
    record = Record()
    async with _opened(url, start, voice, record=record, headers=headers) as stream:
        speaking: asyncio.Task[None] | None = None
        try:
            async for _ in _received(stream, record):
                if speaking is None and record.ready_s is not None:
                    speaking = asyncio.create_task(_speak(stream, voice, seconds, record=record))
        finally:
            if speaking is not None:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
    return record


async def first_fragment(url: str, start: dict[str, Any], voice: Voice) -> float:
    """Seconds from `start`, with a second of speech right behind it, to the first fragment.

    Raises ``RuntimeError`` when the session fails.
    """
    record = Record()
    async with _opened(url, start, voice, record=record) as stream:
        for chunk in voice.chunks(1.0, 0.25):
            await stream.push_audio(chunk)
        await stream.end()
        async for _ in _received(stream, record):
            pass
    if record.trouble is not None or not record.fragments:
        raise RuntimeError(f"a session gave no video: {record.trouble}")
    return record.fragments[0].at_s - record.asked_s


@asynccontextmanager
async def _opened(
    url: str,
    start: dict[str, Any],
    voice: Voice,
    *,
    record: Record,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[AsyncStream]:
    """A session that was asked for; `AsyncClient.stream` would wait until it is ready."""
    async with connect(
        stream_url(url), additional_headers=headers, max_size=None, compression=None
    ) as socket:
        record.asked_s = time.monotonic()
        await socket.send(message("start", sample_rate=voice.rate, **start))
        yield AsyncStream(socket)


async def _speak(stream: AsyncStream, voice: Voice, seconds: float, *, record: Record) -> None:
    began_s = record.spoke_s = time.monotonic()
    for count, chunk in enumerate(voice.chunks(seconds, CHUNK_S), 1):
        due_s = began_s + count * CHUNK_S  # a chunk can be sent once it was recorded
        await asyncio.sleep(due_s - time.monotonic())
        record.lag_s = max(record.lag_s, time.monotonic() - due_s)
        await stream.push_audio(chunk)
    await stream.end()


async def _received(stream: AsyncStream, record: Record) -> AsyncIterator[None]:
    """Note every event with the time of its receipt; yields after each until the session ends."""
    try:
        async for event in stream:
            now_s = time.monotonic()
            if isinstance(event, Ready):
                record.ready_s = now_s
            elif isinstance(event, Fragment):
                check_fragment(event.data)
                speech = event.kind == "speech"
                record.fragments.append(
                    Seen(event.start_s, event.duration_s, speech, len(event.data), now_s)
                )
            yield
    except ConnectionLost as lost:
        record.trouble = lost.detail
    except FadaError as error:
        record.trouble = error.code

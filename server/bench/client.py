"""One live session as a client holds it: sound in at the pace of speech, fragments out.

Decodes nothing: a fragment's boxes are looked at, not its pictures, so that many sessions cost
little.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

CHUNK_S = 0.02  # a microphone's worklet hands over about so much at once


@dataclass(frozen=True)
class Voice:
    """Mono 16-bit PCM that is spoken over and over."""

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
    """What one session saw. ``trouble`` is an error's code, or how the connection ended."""

    asked_s: float = 0.0
    ready_s: float | None = None
    spoke_s: float | None = None
    fragments: list[Seen] = field(default_factory=list)
    trouble: str | None = None
    lag_s: float = 0.0  # the most by which a chunk of sound left late: the client's own trouble


class BrokenFragmentError(ValueError):
    """Bytes that are no ``moof`` + ``mdat``."""


def check_fragment(blob: bytes) -> None:
    """Raises `BrokenFragmentError` unless ``blob`` is exactly one ``moof`` and one ``mdat``."""
    kinds, at = [], 0
    while at + 8 <= len(blob):
        size, kind = struct.unpack_from(">I4s", blob, at)
        kinds.append(kind)
        at += size if size >= 8 else len(blob) + 1  # smaller than its own header
    if kinds != [b"moof", b"mdat"] or at != len(blob):
        raise BrokenFragmentError(f"a fragment of {len(blob)} bytes has the boxes {kinds}")


async def hold(url: str, start: dict[str, Any], voice: Voice, seconds: float) -> Record:
    """A conversation: speak for ``seconds`` in real time from `ready` on, then say `end`.

    ``url`` is that of the service, ``ws://`` or ``wss://``; ``start`` are the message's fields.
    """
    record = Record()
    async with connect(f"{url}/stream", max_size=None, compression=None) as socket:
        await _start(socket, start, voice, record)
        speaking: asyncio.Task[None] | None = None
        try:
            async for _ in _received(socket, record):
                if speaking is None and record.ready_s is not None:
                    speaking = asyncio.create_task(_speak(socket, voice, seconds, record))
        finally:
            if speaking is not None:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
    return record


async def first_fragment(url: str, start: dict[str, Any], voice: Voice) -> float:
    """Seconds from `start`, with a second of sound right behind it, to the first fragment.

    Raises ``RuntimeError`` when the session fails.
    """
    record = Record()
    async with connect(f"{url}/stream", max_size=None, compression=None) as socket:
        await _start(socket, start, voice, record)
        for chunk in voice.chunks(1.0, 0.25):
            await socket.send(chunk)
        await socket.send('{"type": "end"}')
        async for _ in _received(socket, record):
            pass
    if record.trouble is not None or not record.fragments:
        raise RuntimeError(f"a session gave no video: {record.trouble}")
    return record.fragments[0].at_s - record.asked_s


async def _start(
    socket: ClientConnection, start: dict[str, Any], voice: Voice, record: Record
) -> None:
    record.asked_s = time.monotonic()
    await socket.send(json.dumps({"type": "start", "sample_rate": voice.rate, **start}))


async def _speak(socket: ClientConnection, voice: Voice, seconds: float, record: Record) -> None:
    began_s = record.spoke_s = time.monotonic()
    for count, chunk in enumerate(voice.chunks(seconds, CHUNK_S), 1):
        due_s = began_s + count * CHUNK_S  # a chunk can be sent once it was spoken
        await asyncio.sleep(due_s - time.monotonic())
        record.lag_s = max(record.lag_s, time.monotonic() - due_s)
        await socket.send(chunk)
    await socket.send('{"type": "end"}')


async def _received(socket: ClientConnection, record: Record) -> Any:
    """Note every message; yields after each, until the session ends."""
    facts: dict[str, Any] | None = None
    try:
        async for message in socket:
            now_s = time.monotonic()
            if isinstance(message, str):
                facts = json.loads(message)
                kind = facts["type"]
                if kind == "ready":
                    record.ready_s = now_s
                elif kind == "error":
                    record.trouble = facts["code"]
            elif facts is not None and facts["type"] == "fragment":
                check_fragment(message)
                record.fragments.append(
                    Seen(
                        facts["start_s"],
                        facts["duration_s"],
                        facts["kind"] == "speech",
                        len(message),
                        now_s,
                    )
                )
                facts = None
            yield
    except ConnectionClosed as closed:
        if record.trouble is None:
            record.trouble = f"closed with {closed.rcvd.code if closed.rcvd else 'nothing'}"

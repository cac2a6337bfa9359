"""What the tests hear and see of an avatar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from conftest import KEY, PORTRAIT, Service
from fada_client import AsyncClient, async_stream
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd
from livekit.plugins.fada import FadaVideoGenerator
from pytest import MonkeyPatch

RATE = 24_000
FRAME = RATE // 25
END = AudioSegmentEnd()
Item = rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd


def run(work: Awaitable[Any], timeout_s: float = 30.0) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, timeout_s)

    return asyncio.run(bounded())


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-3000, 3000, round(seconds * rate)).astype("<i2")


def tone(seconds: float, pitch_hz: float = 440.0, rate: int = RATE) -> np.ndarray[Any, Any]:
    samples = np.arange(round(seconds * rate))
    return (8000 * np.sin(2 * np.pi * pitch_hz * samples / rate)).astype("<i2")


def chunks(samples: np.ndarray[Any, Any], size: int = 2400, rate: int = RATE) -> list[Any]:
    """(N,) or (N, channels) int16 as audio frames of ``size`` samples."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    pieces = [samples[at : at + size] for at in range(0, len(samples), size)]
    return [rtc.AudioFrame(piece.tobytes(), rate, channels, len(piece)) for piece in pieces]


async def say(generator: FadaVideoGenerator, samples: np.ndarray[Any, Any]) -> None:
    """A whole segment at once, as a text-to-speech engine gives it."""
    for frame in chunks(samples):
        await generator.push_audio(frame)
    await generator.push_audio(END)


@asynccontextmanager
async def generator_of(service: Service, **options: Any) -> AsyncIterator[FadaVideoGenerator]:
    async with AsyncClient(service.url, KEY) as client:
        generator = FadaVideoGenerator(
            client, portrait=PORTRAIT, options={"size": 128, "seed": 1, **options}
        )
        await generator.start()
        try:
            yield generator
        finally:
            await generator.aclose()


@asynccontextmanager
async def severable(
    service: Service, *, resume_s: float = 0.0
) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The service at another address, and what cuts all connections to it.

    For ``resume_s`` the client tries to resume its session.
    """
    port = int(service.url.rpartition(":")[2])
    ends: list[asyncio.StreamWriter] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service_reader, service_writer = await asyncio.open_connection("127.0.0.1", port)
        ends.extend((writer, service_writer))
        await asyncio.gather(
            forward(reader, service_writer), forward(service_reader, writer), return_exceptions=True
        )

    def cut() -> None:
        for one in ends:
            one.transport.abort()

    with MonkeyPatch.context() as patched:
        patched.setattr(async_stream, "RESUME_S", resume_s)
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
            cut()


async def watch(items: AsyncIterator[Item], until: Callable[[list[Item]], bool]) -> list[Item]:
    seen: list[Item] = []
    async for item in items:
        seen.append(item)
        if until(seen):
            break
    return seen


def ends(count: int) -> Callable[[list[Item]], bool]:
    return lambda seen: sum(isinstance(one, AudioSegmentEnd) for one in seen) == count


def pictures(count: int) -> Callable[[list[Item]], bool]:
    return lambda seen: sum(isinstance(one, rtc.VideoFrame) for one in seen) == count


def letters(items: list[Item]) -> str:
    """V for a picture, A for sound, E for a segment's end."""
    names = {rtc.VideoFrame: "V", rtc.AudioFrame: "A", AudioSegmentEnd: "E"}
    return "".join(names[type(one)] for one in items)


def sound(items: list[Item]) -> np.ndarray[Any, Any]:
    data = b"".join(bytes(one.data) for one in items if isinstance(one, rtc.AudioFrame))
    return np.frombuffer(data, "<i2")


def colour(frame: rtc.VideoFrame) -> tuple[int, int, int]:
    """The colour of a flat picture, RGB."""
    data = np.frombuffer(frame.convert(rtc.VideoBufferType.RGB24).data, np.uint8)
    red, green, blue = np.median(data.reshape(-1, 3), axis=0)
    return int(red), int(green), int(blue)

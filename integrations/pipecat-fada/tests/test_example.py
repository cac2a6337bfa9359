"""The example bot, as a browser sees it: over WebRTC, by its own runner."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from av import AudioFrame, VideoFrame
from conftest import KEY, Service
from helpers import run

BOT = Path(__file__).parents[1] / "examples" / "bot.py"


@pytest.fixture
def bot(service: Service, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, BOT, "-t", "webrtc", "--port", str(port)],
            env={**os.environ, "FADA_API_URL": service.url, "FADA_API_KEY": KEY},
            stdout=output,
            stderr=output,
            cwd=tmp_path,
        )
    try:
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(20)
    errors = re.findall(r"(?:ERROR|CRITICAL) .*|Traceback", log.read_text())
    assert not errors, log.read_text()


async def offered(url: str, offer: RTCSessionDescription) -> RTCSessionDescription:
    body = {"sdp": offer.sdp, "type": offer.type}
    async with aiohttp.ClientSession() as http:
        for _ in range(200):  # until it listens
            try:
                async with http.post(f"{url}/api/offer", json=body) as answer:
                    answer.raise_for_status()
                    fields = await answer.json()
                    return RTCSessionDescription(fields["sdp"], fields["type"])
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.1)
    raise AssertionError("the bot does not listen")


async def until_loud(track: MediaStreamTrack) -> float:
    while True:
        frame = await track.recv()
        assert isinstance(frame, AudioFrame)
        if np.abs(frame.to_ndarray()).max() > 1000:
            return time.monotonic()


def test_the_example_shows_an_avatar_that_speaks(bot: str) -> None:
    async def work() -> None:
        connection = RTCPeerConnection()
        connection.addTrack(AudioStreamTrack())  # a microphone in a quiet room
        connection.addTransceiver("video", direction="recvonly")
        tracks: dict[str, MediaStreamTrack] = {}
        connection.on("track", lambda track: tracks.update({track.kind: track}))
        await connection.setLocalDescription(await connection.createOffer())
        await connection.setRemoteDescription(await offered(bot, connection.localDescription))
        loud = asyncio.create_task(until_loud(tracks["audio"]))
        seen: list[bytes] = []
        while not loud.done() or len(set(seen)) < 12:
            frame = await tracks["video"].recv()
            assert isinstance(frame, VideoFrame) and (frame.width, frame.height) == (512, 512)
            seen.append(frame.reformat(8, 8, "rgb24").to_ndarray().tobytes())
        await loud
        await connection.close()

    run(work())

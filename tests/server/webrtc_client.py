"""A recording client of `/webrtc` for tests and benches, over aiortc."""

from __future__ import annotations

import asyncio
import fractions
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

RATE = 48_000
_FRAME = 960  # 20 ms
_TIMEOUT_S = 30.0
Speech = Callable[[int], np.ndarray[Any, np.dtype[np.int16]]]  # of the samples from a position on


def quiet(at: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.zeros(_FRAME, np.int16)


def noise(at: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(at).integers(-8000, 8000, _FRAME).astype(np.int16)


class Microphone(MediaStreamTrack):
    """A track of what ``speech`` says, in real time."""

    kind = "audio"

    def __init__(self, speech: Speech = quiet) -> None:
        super().__init__()
        self.speech = speech
        self._at = 0
        self._start_s: float | None = None

    async def recv(self) -> AudioFrame:
        now_s = time.monotonic()
        if self._start_s is None:
            self._start_s = now_s
        await asyncio.sleep(max(0.0, self._start_s + self._at / RATE - now_s))
        frame = AudioFrame.from_ndarray(self.speech(self._at)[None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE, self._at
        frame.time_base = fractions.Fraction(1, RATE)
        self._at += _FRAME
        return frame


@dataclass
class Call:
    """A connection that keeps what it receives: arrival, in monotonic seconds, and what."""

    connection: RTCPeerConnection
    microphone: Microphone
    answer: httpx.Response | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[float, VideoFrame]] = field(default_factory=list)
    sounds: list[tuple[float, AudioFrame]] = field(default_factory=list)
    channel: Any = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def send(self, kind: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def until(self, ready: Callable[[], Any], timeout_s: float = _TIMEOUT_S) -> None:
        """Wait for something received to make ``ready()`` true."""
        async with asyncio.timeout(timeout_s):
            while not ready():
                self._news.clear()
                await self._news.wait()

    def news(self) -> None:
        self._news.set()

    async def keep(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                kept: list[Any] = self.pictures if track.kind == "video" else self.sounds
                kept.append((time.monotonic(), frame))
                self.news()
        except MediaStreamError:
            self.news()


async def offered(call: Call, *, codecs: str | None = None) -> str:
    """The SDP of an offer: microphone, video and a data channel; ``codecs``: such as VP8 only."""
    pc = call.connection
    pc.addTrack(call.microphone)
    video = pc.addTransceiver("video", direction="recvonly")
    if codecs is not None:
        from aiortc import RTCRtpReceiver

        offers = RTCRtpReceiver.getCapabilities("video").codecs
        video.setCodecPreferences([one for one in offers if one.mimeType == f"video/{codecs}"])
    call.channel = pc.createDataChannel("control")
    await pc.setLocalDescription(await pc.createOffer())
    return pc.localDescription.sdp


def new_call(speech: Speech = quiet) -> Call:
    call = Call(RTCPeerConnection(RTCConfiguration(iceServers=[])), Microphone(speech))
    call.connection.on("connectionstatechange", call.news)
    tasks = []

    @call.connection.on("track")
    def _keep(track: MediaStreamTrack) -> None:
        tasks.append(asyncio.ensure_future(call.keep(track)))

    return call


async def post(
    http: httpx.AsyncClient, offer: str, headers: Mapping[str, str] | None = None, **query: Any
) -> httpx.Response:
    """Offer a session, again for a while where the last one's place is still taken."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while True:
        answer = await offer_once(http, offer, headers, **query)
        if answer.status_code != 429 or time.monotonic() > deadline_s:
            return answer
        await asyncio.sleep(0.5)


async def offer_once(
    http: httpx.AsyncClient, offer: str, headers: Mapping[str, str] | None = None, **query: Any
) -> httpx.Response:
    kind = {"Content-Type": "application/sdp"}
    return await http.post(
        "/webrtc", params=query, content=offer, headers={**kind, **(headers or {})}
    )


@asynccontextmanager
async def calling(
    url: str,
    avatar_id: str,
    speech: Speech = quiet,
    *,
    codecs: str | None = None,
    headers: Mapping[str, str] | None = None,
    on_offer: Callable[[str], str] = lambda sdp: sdp,
    on_answer: Callable[[str], str] = lambda sdp: sdp,
    **options: Any,
) -> AsyncIterator[Call]:
    """A connected session; ``on_offer`` and ``on_answer`` may change the SDP on its way."""
    call = new_call(speech)
    try:
        sdp = on_offer(await offered(call, codecs=codecs))

        @call.channel.on("message")
        def _keep_event(text: str) -> None:
            call.events.append(json.loads(text))
            call.news()

        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as http:
            call.answer = await post(
                http, sdp, headers, avatar_id=avatar_id, **{"size": 128, **options}
            )
        assert call.answer.status_code == 201, call.answer.text
        answer = RTCSessionDescription(on_answer(call.answer.text), "answer")
        await call.connection.setRemoteDescription(answer)
        yield call
    finally:
        await call.connection.close()

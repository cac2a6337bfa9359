"""`POST /webrtc`: live sessions over WebRTC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

import httpx
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from bench.doors.base import EXAMPLES, Address, Answer, Flood, refusal

_ANSWER_S = 60.0
_PORTRAIT = (EXAMPLES / "presenter.jpg").read_bytes()
_SDP = {"Content-Type": "application/sdp"}
# What a client that is nowhere offers: video that it receives.
_OFFER = "\r\n".join(
    [
        "v=0",
        "o=- 1 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "m=video 9 UDP/TLS/RTP/SAVPF 97",
        "c=IN IP4 0.0.0.0",
        "a=recvonly",
        "a=mid:0",
        "a=rtcp-mux",
        "a=rtpmap:97 VP8/90000",
        "a=ice-ufrag:abcd",
        "a=ice-pwd:abcdefghijklmnopqrstuv",
        "a=fingerprint:sha-256 " + ":".join(["00"] * 32),
        "a=setup:actpass",
        "",
    ]
).encode()


class WebRTCDoor:
    name = "webrtc"
    media: Mapping[str, bytes] = {"offer": _OFFER}
    floods: Mapping[str, Flood]

    def __init__(self) -> None:
        self.floods = {"offers from nowhere": _offers_from_nowhere}

    def ask(self, at: Address, files: Mapping[str, bytes]) -> Answer:
        """A session until its first picture; or another ``offer``, as far as its answer."""
        try:
            offer = files.get("offer", _OFFER)
            if offer == _OFFER:
                return asyncio.run(_session(at))
            answer = httpx.post(at.url + _path(at), content=offer, headers={**at.headers, **_SDP})
            return Answer("ok") if answer.is_success else refusal(answer.text)
        except (httpx.TransportError, TimeoutError) as error:
            return Answer("cut", str(error))
        except _Refused as refused:
            return refused.answer

    def whole(self, at: Address) -> bytes:
        head = {**_SDP, "Content-Length": str(len(_OFFER))}
        return at.request("POST", _path(at), head) + _OFFER

    def half(self, at: Address) -> bytes:
        return at.request("POST", "/webrtc?avatar_id=0", {**_SDP, "Content-Length": "60000"}) + b"v"


class _Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.detail)
        self.answer = answer


def _path(at: Address) -> str:
    files = {"portrait": ("p", _PORTRAIT)}
    made = httpx.post(at.url + "/avatars", files=files, headers=dict(at.headers), timeout=_ANSWER_S)
    if not made.is_success:
        raise _Refused(refusal(made.text))
    return f"/webrtc?avatar_id={made.json()['avatar_id']}&size=128"


async def _session(at: Address) -> Answer:
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        client.addTransceiver("video", direction="recvonly")
        client.createDataChannel("control")
        await client.setLocalDescription(await client.createOffer())
        async with httpx.AsyncClient(base_url=at.url, timeout=_ANSWER_S) as http:
            path = await asyncio.to_thread(_path, at)
            sdp, headers = client.localDescription.sdp, {**at.headers, **_SDP}
            answer = await http.post(path, content=sdp, headers=headers)
            if not answer.is_success:
                return refusal(answer.text)
            await client.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
            (video,) = client.getReceivers()
            async with asyncio.timeout(_ANSWER_S):
                await video.track.recv()
            await http.delete(answer.headers["Location"], headers=dict(at.headers))
        return Answer("ok")
    finally:
        await client.close()


def _offers_from_nowhere(at: Address, until_s: float) -> None:
    """Sessions whose clients never connect."""
    path = None
    while time.monotonic() < until_s:
        with contextlib.suppress(httpx.HTTPError, _Refused):
            path = path or _path(at)
            httpx.post(at.url + path, content=_OFFER, headers={**at.headers, **_SDP}, timeout=10)
        time.sleep(0.02)

"""Microphone to picture over WebRTC, on loopback.

    python bench/webrtc.py --seconds 60

Starts a service (or uses ``--url``) and one session whose microphone says a short sentence with a
click every second or so. Each click comes back with the picture that belongs to it: both leave
the service on one clock. Counted is from the moment a click's samples are spoken to the arrival of
their sound, with nothing held back on the client's side, and how far pictures arrive from their
sound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np

from bench.doors.base import EXAMPLES
from tests.server.service import running
from tests.server.webrtc_client import RATE, Call, calling

WINDOW_S, LOOK_AHEAD_S, BOUND_S = 0.32, 0.16, 0.15
_EVERY = 53  # blocks of 20 ms between two clicks: in turn at every phase of a window
_CLICK = 96  # samples at full scale
_FULL = 30_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--url", help="a running service, instead of one of its own")
    options = parser.parse_args()
    with _service(options.url) as url:
        asyncio.run(_measure(url, options.seconds))


@contextlib.contextmanager
def _service(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with running({}) as service:
        yield service.url


class _Clicks:
    """Quiet speech with clicks, and when each was spoken."""

    def __init__(self) -> None:
        with wave.open(str(EXAMPLES / "speech.wav")) as file:
            pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(float)
            seconds = np.arange(len(pcm)) / file.getframerate()
        at = np.arange(0, seconds[-1], 1 / RATE)
        self._speech = np.interp(at, seconds, 0.2 * pcm).astype(np.int16)
        self.spoken_s: list[float] = []

    def __call__(self, at: int) -> np.ndarray[Any, np.dtype[np.int16]]:
        block = np.resize(np.roll(self._speech, -at)[:960], 960).copy()
        if at and at // 960 % _EVERY == 0:
            block[:_CLICK] = _FULL
            self.spoken_s.append(time.monotonic())
        return block


async def _measure(url: str, seconds: float) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        portrait = (EXAMPLES / "presenter.jpg").read_bytes()
        made = await http.post("/avatars", files={"portrait": ("p", portrait)})
        avatar = made.json()["avatar_id"]
    clicks = _Clicks()
    async with calling(url, avatar, clicks, size=512) as call:
        _hold_nothing_back(call)
        await call.until(lambda: call.pictures)
        await asyncio.sleep(5.0)  # until the client's and the service's clocks have settled
        skipped, first = len(clicks.spoken_s), len(call.sounds)
        await asyncio.sleep(seconds)
        heard = _heard(call, first)
    delays = [
        min((at - said for at in heard if 0 < at - said < 1.05), default=np.nan)
        for said in clicks.spoken_s[skipped + 1 : -2]
    ]
    found = np.array([one for one in delays if np.isfinite(one)])
    p50, p95 = np.percentile(found, [50, 95]) * 1000
    bound = 1000 * (WINDOW_S + LOOK_AHEAD_S + BOUND_S)
    print(f"clicks heard again: {len(found)} of {len(delays)}")
    print(
        f"microphone to picture: p50 {p50:.0f} ms, p95 {p95:.0f} ms; wanted p95 <= {bound:.0f} ms"
    )
    print(f"pictures arrive {1000 * _apart(call):+.0f} ms from their sound")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _hold_nothing_back(call: Call) -> None:
    """aiortc's receiver keeps four packets of sound, which a page's player does in its own way."""
    for receiver in call.connection.getReceivers():
        buffer = getattr(receiver, "_RTCRtpReceiver__jitter_buffer")  # noqa: B009
        buffer._prefetch = 0


def _heard(call: Call, first: int) -> list[float]:
    """When the beginnings of clicks arrived; a packet of 20 ms arrives at once, with its end."""
    found: list[float] = []
    for at, frame in call.sounds[first:]:
        loud = np.flatnonzero(np.abs(frame.to_ndarray().ravel().astype(int)) > _FULL // 3)
        if len(loud) and (not found or at - found[-1] > 0.3):
            found.append(at)
    return found


def _apart(call: Call) -> float:
    """Median lag of pictures against sound; known to within a packet, 20 ms."""
    lags = []
    for kept, clock in ((call.pictures, 90_000), (call.sounds, RATE)):
        zero = kept[0][1].pts
        lags.append(np.median([at - (frame.pts - zero) / clock for at, frame in kept[100:]]))
    return float(lags[0] - lags[1])


if __name__ == "__main__":
    main()

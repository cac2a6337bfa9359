"""A client that speaks in real time, and what it must get back."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import redis
from websockets.exceptions import ConnectionClosed

from tests.server.fake_pipeline import GREEN_STEP
from tests.server.stream_client import Stream, stream_to

RATE = 16_000
CHUNK_S = 0.1


def eventually(step: object, seconds: float = 20.0) -> None:
    """Call ``step`` until it neither raises a Redis error nor returns something false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if step():  # type: ignore[operator]
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.05)


@dataclass
class Talker(threading.Thread):
    """A client that speaks its tone in real time for ``seconds`` and keeps what comes back."""

    url: str
    number: int
    seconds: float
    idle: bool
    slow_s: float = 0.0  # between two fragments
    stream: Stream | None = None
    failure: BaseException | None = None
    ended: int | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    @property
    def hertz(self) -> int:
        return 300 + 170 * self.number

    def run(self) -> None:
        try:
            with stream_to(self.url) as self.stream:
                self.stream.start(seed=self.number, idle=self.idle, sample_rate=RATE)
                speaking = threading.Thread(target=self._speak, args=(self.stream,), daemon=True)
                speaking.start()
                self.ended = self._listen(self.stream)
                speaking.join(5.0)
        except BaseException as error:
            self.failure = error

    def _listen(self, stream: Stream) -> int:
        try:
            while True:
                if stream.next() == "fragment" and self.slow_s:
                    time.sleep(self.slow_s)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code

    def _speak(self, stream: Stream) -> None:
        count, began_s = round(RATE * CHUNK_S), time.monotonic()
        try:
            for n in range(round(self.seconds / CHUNK_S)):
                moment = (np.arange(count) + n * count) / RATE
                tone = 8000 * np.sin(2 * np.pi * self.hertz * moment)
                stream.send_audio(tone.astype("<i2").tobytes())
                time.sleep(max(0.0, began_s + (n + 1) * CHUNK_S - time.monotonic()))
            stream.send("end")
        except ConnectionClosed:
            return  # the reading thread knows how it ended

    def longest_stall_s(self) -> float:
        assert self.stream is not None
        return max(np.diff(self.stream.times_s))

    def check(self) -> None:
        """All that was sent came back once, in order, without anything of another session."""
        assert self.failure is None, self.failure
        stream = self.stream
        assert stream is not None and self.ended == 1000, stream and stream.texts[-1]
        fragments = stream.of("fragment")
        assert [f["index"] for f in fragments] == list(range(len(fragments)))
        assert len(stream.data) == len(fragments) + 1
        seen = stream.video()
        assert np.diff(seen.times_s) == pytest.approx(0.04)
        assert seen.video_s == pytest.approx(stream.texts[-1]["duration_s"], abs=0.041)
        assert seen.sound_s == pytest.approx(stream.texts[-1]["duration_s"], abs=0.001)
        assert np.abs(seen.pictures[:, 1] - self.number * GREEN_STEP).max() < 12
        speech_s = sum(f["duration_s"] for f in fragments if f["kind"] == "speech")
        assert speech_s == pytest.approx(self.seconds, abs=0.041)
        self._check_tone(seen.sound, seen.rate)

    def _check_tone(self, samples: np.ndarray, rate: int) -> None:
        """Every eighth of a second is silent or its own tone, with nothing else a tenth as loud."""
        block = rate // 8
        tones = 0
        for start in range(block, len(samples) - 2 * block, block):
            part = samples[start : start + block]
            if np.sqrt((part**2).mean()) < 0.15:  # rest, or the edge of speech
                continue
            tones += 1
            spectrum = np.abs(np.fft.rfft(part * np.hanning(block)))
            hertz = np.arange(len(spectrum)) * rate / block
            own = np.abs(hertz - self.hertz) < 40
            assert spectrum[own].max() > 10 * spectrum[~own].max(), (start / rate, self.hertz)
        assert tones >= (self.seconds - 0.6) * 8

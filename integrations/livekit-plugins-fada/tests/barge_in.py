"""How long an avatar goes on after its user's first word, as a viewer sees and hears it.

    python tests/barge_in.py --repeats 10

starts a service whose pictures are colours that count, has an agent speak a tone of 1 kHz through
its avatar, and lets a recorded voice interrupt it, found by LiveKit's own voice activity detection.
Counter and tone are read back behind H.264 and Opus encoders and decoders. With `--url`, `--key`,
`--portrait` and `--record OUT.mp4` it records one interruption of an avatar instead.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from conftest import KEY, PORTRAIT, ROOT, Service, serving
from helpers import chunks, colour, tone
from livekit import rtc
from livekit.agents import Agent, AgentSession, inference
from livekit.agents.voice.io import AudioInput
from livekit.plugins.fada import AvatarSession
from room import Room
from viewer import Viewer

USER_RATE = 16_000
# LiveKit's defaults wait for half a second of speech, lest a cough interrupts.
TURNS: Any = {
    "turn_detection": "vad",
    "interruption": {"mode": "vad", "min_duration": 0.1, "resume_false_interruption": False},
}


@dataclass(frozen=True)
class BargeIn:
    """Seconds from the user's first word to the last old picture, the last old sound, and the
    first new picture."""

    picture_s: float
    sound_s: float
    rest_s: float


class Microphone(AudioInput):
    """Silence in real time; `speak` plays the user's voice."""

    def __init__(self, voice: np.ndarray[Any, Any]) -> None:
        super().__init__(label="microphone")
        self._voice = np.zeros(0, "<i2")
        self._words = voice
        self._due_s = 0.0
        self.word_s = math.inf  # when the first word was spoken

    def speak(self) -> None:
        self._voice = self._words

    async def __anext__(self) -> rtc.AudioFrame:
        now_s = time.monotonic()
        self._due_s = max(self._due_s + 0.02, now_s)
        await asyncio.sleep(self._due_s - now_s)
        size = USER_RATE // 50
        piece, self._voice = self._voice[:size], self._voice[size:]
        if np.abs(piece).max(initial=0) > 2000:
            self.word_s = min(self.word_s, time.monotonic() - 0.02)  # it was said meanwhile
        data = np.pad(piece, (0, size - len(piece))).tobytes()
        return rtc.AudioFrame(data, USER_RATE, 1, size)


def user_voice() -> np.ndarray[Any, Any]:
    return samples_of(ROOT / "docs/examples/speech.wav")


def samples_of(path: Path) -> np.ndarray[Any, Any]:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels()) == (USER_RATE, 1)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


async def whistle(seconds: float) -> AsyncIterator[rtc.AudioFrame]:
    for frame in chunks(tone(seconds, 1000)):
        yield frame


async def speech_of(path: Path) -> AsyncIterator[rtc.AudioFrame]:
    for frame in chunks(samples_of(path), 1600, USER_RATE):
        yield frame


async def interrupted(
    avatar: AvatarSession, speech: AsyncIterator[rtc.AudioFrame], speak_s: float, after_s: float
) -> tuple[Viewer, float]:
    """An agent says ``speech``, a user interrupts once ``speak_s`` of it were heard; also gives the
    first word's time."""
    room, microphone = Room({}, "agent").join(), Microphone(user_voice())
    session: AgentSession[Any] = AgentSession(
        vad=inference.VAD(), turn_handling=TURNS, aec_warmup_duration=None
    )
    session.input.audio = microphone
    await avatar.start(session, room)  # type: ignore[arg-type]
    await session.start(Agent(instructions="Speak."))
    viewer = Viewer()
    try:
        while len(room.local_participant.track_publications) < 2:
            await asyncio.sleep(0.01)
        viewer.subscribe(room.local_participant.track_publications)
        await asyncio.sleep(0.5)
        handle = session.say("A long story.", audio=speech)
        while heard_s(viewer) < speak_s:
            await asyncio.sleep(0.01)
        microphone.speak()
        await asyncio.wait_for(handle.wait_for_playout(), 10)
        assert handle.interrupted
        await asyncio.sleep(after_s)
    finally:
        await viewer.aclose()
        await session.aclose()
        await avatar.aclose()
    return viewer, microphone.word_s


async def measure(service: Service) -> BargeIn:
    avatar = AvatarSession(
        portrait=PORTRAIT, api_url=service.url, api_key=KEY, options={"size": 128}
    )
    viewer, word_s = await interrupted(avatar, whistle(20.0), 1.0, 1.0)
    counts = [(at_s, count(frame)) for at_s, frame in viewer.pictures if at_s > word_s]
    # The pictures that were dropped are a jump of the counter; what is before it is old.
    steps = [later[1] - earlier[1] for earlier, later in pairwise(counts)]
    jump = next(n for n, step in enumerate(steps, 1) if step not in (0, 1, -127))
    old_sound_s = max(at_s for at_s, samples in viewer.sounds if is_tone(samples))
    return BargeIn(
        picture_s=counts[jump - 1][0] - word_s,
        sound_s=old_sound_s - word_s,
        rest_s=counts[jump][0] - word_s,
    )


def heard_s(viewer: Viewer) -> float:
    return sum(len(one) for _, one in viewer.sounds if np.abs(one).max() > 500) / 48_000


def count(frame: rtc.VideoFrame) -> int:
    """The picture's place: windows count up to 16 in red, their frames up to 8 in blue."""
    red, _, blue = colour(frame)
    return round((red - 12) / 14.75) % 16 * 8 + round((blue - 7) / 23)


def is_tone(samples: np.ndarray[Any, Any]) -> bool:
    """Whether there are 1 kHz in a piece at 48 kHz."""
    phase = np.exp(-2j * np.pi * 1000 * np.arange(len(samples)) / 48_000)
    return bool(np.abs(samples @ phase) / len(samples) > 500)


def record(viewer: Viewer, word_s: float, path: Path) -> None:
    """What the viewer got, one second before the first word to two after it."""
    shown = [(at_s - word_s, frame) for at_s, frame in viewer.pictures if -1 < at_s - word_s < 2]
    heard = [(at_s - word_s, one) for at_s, one in viewer.sounds if -1 < at_s - word_s < 2]
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "12"})
        video.width, video.height, video.pix_fmt = shown[0][1].width, shown[0][1].height, "yuv420p"
        audio = out.add_stream("aac", rate=48_000, layout="mono")
        for tick in range(75):  # what is on the screen at each tick
            at_s = -1 + tick / 25
            seen = [frame for shown_s, frame in shown if shown_s <= at_s] or [shown[0][1]]
            planes = np.frombuffer(seen[-1].data, np.uint8).reshape(video.height * 3 // 2, -1)
            picture = av.VideoFrame.from_ndarray(planes, "yuv420p")
            picture.pts = tick
            out.mux(video.encode(picture))
        pcm = np.concatenate([one for _, one in heard])
        sound = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        sound.rate = 48_000
        out.mux(audio.encode(sound))
        out.mux([*video.encode(None), *audio.encode(None)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--url")
    parser.add_argument("--key")
    parser.add_argument("--portrait", type=Path)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if options.record:
        own = {"api_key": options.key} if options.key else {}
        avatar = AvatarSession(portrait=options.portrait, api_url=options.url, **own)
        speech = speech_of(ROOT / "docs/examples/speech.wav")
        viewer, word_s = asyncio.run(interrupted(avatar, speech, 1.5, 2.0))
        record(viewer, word_s, options.record)
        return
    with serving() as service:
        all_of = [asyncio.run(measure(service)) for _ in range(options.repeats)]
    for name in ("picture_s", "sound_s", "rest_s"):
        values = sorted(getattr(one, name) for one in all_of)
        median = values[len(values) // 2]
        print(f"{name}: median {1000 * median:.0f} ms, at most {1000 * values[-1]:.0f} ms")


if __name__ == "__main__":
    main()

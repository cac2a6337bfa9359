"""An agent with a face that needs no key of any provider.

Its voice is a file, and it detects speech by LiveKit's own voice activity detection: it repeats its
sentence whenever somebody has spoken, and falls silent when somebody interrupts.

    make serve
    livekit-server --dev
    export LIVEKIT_URL=ws://127.0.0.1:7880 LIVEKIT_API_KEY=devkey LIVEKIT_API_SECRET=secret
    python examples/agent.py dev

``EXAMPLE_PORTRAIT`` and ``EXAMPLE_SPEECH`` (WAV, 16 bit) name files of your own. To make an
assistant of it, give `AgentSession` an STT, an LLM and a TTS, and drop `answer`.
"""

from __future__ import annotations

import os
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    JobContext,
    UserStateChangedEvent,
    cli,
    inference,
)
from livekit.plugins import fada

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"
PORTRAIT = Path(os.environ.get("EXAMPLE_PORTRAIT") or EXAMPLES / "presenter.jpg")
SPEECH = Path(os.environ.get("EXAMPLE_SPEECH") or EXAMPLES / "speech.wav")

server = AgentServer()


async def voice(path: Path) -> AsyncIterator[rtc.AudioFrame]:
    """A WAV of 16 bit as a text-to-speech engine would send it."""
    with wave.open(str(path)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        while data := file.readframes(rate // 10):
            yield rtc.AudioFrame(data, rate, channels, len(data) // (2 * channels))


def answer(session: AgentSession[Any], speech: Path) -> None:
    """Say the file whenever the user has finished."""

    def changed(event: UserStateChangedEvent) -> None:
        if event.old_state == "speaking" and event.new_state == "listening":
            session.say("(the file)", audio=voice(speech))

    session.on("user_state_changed", changed)


@server.rtc_session()
async def entrypoint(ctx: JobContext) -> None:
    session: AgentSession[Any] = AgentSession(
        vad=inference.VAD(),
        turn_handling={
            "turn_detection": "vad",
            # LiveKit waits for 0.5 s of speech; an avatar that falls silent sooner seems to listen.
            "interruption": {
                "mode": "vad",
                "min_duration": 0.1,
                "resume_false_interruption": False,
            },
        },
    )
    avatar = fada.AvatarSession(portrait=PORTRAIT)
    await avatar.start(session, room=ctx.room)
    await session.start(Agent(instructions="Repeat your sentence."), room=ctx.room)
    answer(session, SPEECH)
    session.say("(the file)", audio=voice(SPEECH))


if __name__ == "__main__":
    cli.run_app(server)

"""A speech-to-speech model with a face: audio deltas in, avatar out.

    python docs/examples/realtime.py question.wav answer.mp4 --portrait docs/examples/presenter.jpg

Sends a question to a server that speaks OpenAI's Realtime protocol (`OPENAI_API_KEY`, or another by
``--realtime ws://…``), and the answer's audio deltas to a FADA service as they come. The avatar
listens while the question is asked and is interrupted as the model is; what it had said by then is
sent to the model. The video goes to a file; a page would append the same bytes to a MediaSource.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fada_client import AsyncClient, AsyncStream, Fragment, InitSegment
from websockets.asyncio.client import ClientConnection, connect

OPENAI = "wss://api.openai.com/v1/realtime?model=gpt-realtime"
RATE = 24_000  # of the protocol's PCM
CHUNK_S = 0.1
PCM = {"type": "audio/pcm", "rate": RATE}
SESSION = {
    "type": "realtime",
    "audio": {
        "input": {"format": PCM, "turn_detection": {"type": "server_vad"}},
        "output": {"format": PCM},
    },
}


@dataclass
class Answer:
    """The model's answer that is being spoken."""

    item_id: str = ""
    response_id: str = ""
    interrupted_id: str = ""  # a response whose late deltas are dropped
    shown_s: float = 0.0  # of its speech


async def ask(model: ClientConnection, question: bytes) -> None:
    """As a microphone would; then silence, in which the model notices the end."""
    size = int(CHUNK_S * RATE) * 2
    pieces = [question[at : at + size] for at in range(0, len(question), size)]
    for piece in [*pieces, *[bytes(size)] * 10]:
        audio = base64.b64encode(piece).decode()
        await model.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        await asyncio.sleep(CHUNK_S)


async def speak(model: ClientConnection, avatar: AsyncStream, answer: Answer) -> None:
    """From the model to the avatar, until an answer is complete."""
    async for message in model:
        event: dict[str, Any] = json.loads(message)
        match event["type"]:
            case "input_audio_buffer.speech_started":
                await interrupt(model, avatar, answer)
                await avatar.state("listening")
            case "input_audio_buffer.speech_stopped":
                await avatar.state("thinking")
            case "response.output_audio.delta" | "response.audio.delta":
                if event["response_id"] == answer.interrupted_id:
                    continue
                if event["item_id"] != answer.item_id:
                    answer.item_id, answer.shown_s = event["item_id"], 0.0
                    answer.response_id = event["response_id"]
                await avatar.push_audio(base64.b64decode(event["delta"]))
            case "response.done":
                status = event["response"]["status"]
                if status == "completed":
                    await avatar.end()
                    return
                if status != "cancelled":
                    raise RuntimeError(f"the model's response is {status}")
            case "error":
                raise RuntimeError(event["error"]["message"])
    raise RuntimeError("the model's server closed the connection")


async def interrupt(model: ClientConnection, avatar: AsyncStream, answer: Answer) -> None:
    """Stop speaking; the model forgets what was not heard."""
    if not answer.item_id:
        return
    await avatar.interrupt()
    heard = {
        "type": "conversation.item.truncate",
        "item_id": answer.item_id,
        "content_index": 0,
        "audio_end_ms": round(answer.shown_s * 1000),
    }
    await model.send(json.dumps(heard))
    answer.interrupted_id, answer.item_id = answer.response_id, ""


async def show(avatar: AsyncStream, out: IO[bytes], answer: Answer) -> None:
    """The avatar's video, from the first moment to its end."""
    async for event in avatar:
        if isinstance(event, InitSegment | Fragment):
            out.write(event.data)
        if isinstance(event, Fragment) and event.kind == "speech":
            answer.shown_s += event.duration_s


def read(path: Path) -> bytes:
    with wave.open(str(path)) as file:
        found = (file.getframerate(), file.getnchannels(), file.getsampwidth())
        if found != (RATE, 1, 2):
            raise SystemExit(
                f"{path} has {found[0]} Hz, {found[1]} channels, {8 * found[2]} bits, expected "
                f"{RATE} Hz, mono, 16 bits: ffmpeg -i IN -ar {RATE} -ac 1 -c:a pcm_s16le OUT.wav"
            )
        return file.readframes(file.getnframes())


async def converse(given: argparse.Namespace) -> None:
    question, answer = read(given.question), Answer()
    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        AsyncClient(given.fada, os.environ.get("FADA_API_KEY")) as client,
        client.stream(
            portrait=given.portrait, sample_rate=RATE, idle=True, size=given.size
        ) as avatar,
        connect(given.realtime, additional_headers=headers, max_size=None) as model,
    ):
        await model.send(json.dumps({"type": "session.update", "session": SESSION}))
        with given.out.open("wb") as out:
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(ask(model, question))
                tasks.create_task(show(avatar, out, answer))
                await speak(model, avatar, answer)
                asking.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("question", type=Path, help="WAV, 24 kHz, mono, 16 bits")
    parser.add_argument("out", type=Path, help="MP4")
    parser.add_argument("--portrait", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--realtime", default=OPENAI, help="where the model is")
    parser.add_argument(
        "--fada",
        default=os.environ.get("FADA_API_URL", "http://127.0.0.1:8000"),
        help="the service",
    )
    asyncio.run(converse(parser.parse_args()))


if __name__ == "__main__":
    main()

"""The Realtime recipe, against a model's server on this machine and the real service."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from websockets.sync.server import Server, ServerConnection, serve

from tests.server.media_files import picture
from tests.server.media_probe import probe
from tests.server.service import KEYS, ROOT, Service, environment

RATE = 24_000
OLD, NEW = 3000, -3000  # levels of the model's first answer and of its second


class Model:
    """Speaks a long answer, is interrupted by its user, and answers again."""

    def __init__(self) -> None:
        self.session: dict[str, Any] = {}
        self.truncated: dict[str, Any] = {}
        self.heard = 0

    def __call__(self, socket: ServerConnection) -> None:
        self.session = json.loads(socket.recv())["session"]
        self._hear(socket, 1)
        self._say(socket, OLD, 50, "first")
        self._hear(socket, 12)
        socket.send(json.dumps({"type": "input_audio_buffer.speech_started"}))
        self._delta(socket, OLD, "first")  # was on its way
        self._done(socket, "cancelled")
        while not self.truncated:
            self._hear(socket, 1)
        socket.send(json.dumps({"type": "input_audio_buffer.speech_stopped"}))
        self._say(socket, NEW, 4, "second")
        self._done(socket, "completed")
        for _ in socket:
            pass

    def _hear(self, socket: ServerConnection, count: int) -> None:
        for _ in range(count):
            event = json.loads(socket.recv())
            if event["type"] == "conversation.item.truncate":
                self.truncated = event
            else:
                self.heard += len(base64.b64decode(event["audio"]))

    def _say(self, socket: ServerConnection, level: int, tenths: int, name: str) -> None:
        for _ in range(tenths):
            self._delta(socket, level, name)

    def _delta(self, socket: ServerConnection, level: int, name: str) -> None:
        pcm = np.full(RATE // 10, level, "<i2").tobytes()
        event = {
            "type": "response.output_audio.delta",
            "response_id": f"response-{name}",
            "item_id": f"item-{name}",
            "delta": base64.b64encode(pcm).decode(),
        }
        socket.send(json.dumps(event))

    def _done(self, socket: ServerConnection, status: str) -> None:
        socket.send(json.dumps({"type": "response.done", "response": {"status": status}}))


@pytest.fixture
def model() -> Iterator[tuple[Model, Server]]:
    model = Model()
    with serve(model, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield model, server
        server.shutdown()
        thread.join()


def test_audio_deltas_become_an_avatar_that_can_be_interrupted(
    guarded: Service, model: tuple[Model, Server], tmp_path: Path
) -> None:
    mind, server = model
    question, out, portrait = tmp_path / "q.wav", tmp_path / "a.mp4", tmp_path / "p.png"
    soundfile.write(question, np.zeros(3 * RATE, np.int16), RATE)
    portrait.write_bytes(picture())
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "examples" / "realtime.py", question, out]
        + ["--portrait", portrait, "--size", "128", "--fada", guarded.url]
        + ["--realtime", f"ws://127.0.0.1:{server.socket.getsockname()[1]}"],
        env=environment({"FADA_API_KEY": KEYS[0]}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert mind.session["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": RATE}
    assert mind.heard >= RATE * 2 * 0.1
    assert mind.truncated["item_id"] == "item-first"
    said_s = mind.truncated["audio_end_ms"] / 1000
    seen = probe(out.read_bytes())
    old_s = np.sum(seen.sound > OLD / 2**16) / seen.rate
    new_s = np.sum(seen.sound < NEW / 2**16) / seen.rate
    assert 0 < said_s <= old_s + 0.05 < 4  # a fragment or two were under way
    assert new_s == pytest.approx(0.4, abs=0.05)

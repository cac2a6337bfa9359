"""The WebSocket `/stream`: live sessions."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable, Mapping

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from bench.doors.base import EXAMPLES, Address, Answer, Flood, refusal

_MB = 1 << 20
_ANSWER_S = 60.0
_PORTRAIT = (EXAMPLES / "presenter.jpg").read_bytes()
_MASK = bytes(4)  # of a client's frames; zeros leave the payload as it is


class StreamDoor:
    name = "stream"
    media: Mapping[str, bytes] = {"portrait": _PORTRAIT}  # PCM can hold no wrong bytes
    floods: Mapping[str, Flood]

    def __init__(self) -> None:
        self.floods = {
            "sound and interrupts": _sound_and_interrupts,
            "large updates": _large_updates,
            "unfinished messages": _unfinished_messages,
        }

    def ask(self, at: Address, files: Mapping[str, bytes]) -> Answer:
        """A session of 200 ms of sound."""
        try:
            with _connected(at) as socket:
                socket.send(_start({**self.media, **files}["portrait"]))
                socket.send(bytes(2 * 9600))
                socket.send('{"type": "end"}')
                while True:
                    message = socket.recv(_ANSWER_S)
                    event = json.loads(message) if isinstance(message, str) else {}
                    if event.get("type") == "done":
                        return Answer("ok")
                    if event.get("type") == "error":
                        return Answer(event["code"], event["detail"])
        except InvalidStatus as refused:
            return refusal(bytes(refused.response.body or b""))
        except (OSError, ConnectionClosed) as error:  # OSError: TimeoutError as well
            return Answer("cut", str(error))

    def whole(self, at: Address) -> bytes:
        text = _start(self.media["portrait"]).encode()
        head = b"\x81\xff" + len(text).to_bytes(8, "big") + _MASK  # text, in one frame
        sound = b"\x82\xfe" + (9600).to_bytes(2, "big") + _MASK + bytes(9600)
        return self.half(at) + head + text + sound

    def half(self, at: Address) -> bytes:
        """A connection without `start`."""
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
        }
        return at.request("GET", "/stream", upgrade)


def _connected(at: Address) -> ClientConnection:
    place = at.url.replace("http", "ws", 1) + "/stream"
    return connect(
        place, additional_headers=dict(at.headers), max_size=None, compression=None, open_timeout=30
    )


def _start(portrait: bytes) -> str:
    text = base64.b64encode(portrait).decode()
    return json.dumps({"type": "start", "portrait": text, "sample_rate": 48_000})


def _sessions(at: Address, until_s: float, talk: Callable[[ClientConnection], None]) -> None:
    """Live sessions in sequence; ``talk`` runs in each until it is closed."""
    while time.monotonic() < until_s:
        with contextlib.suppress(Exception), _connected(at) as socket:
            socket.send(_start(_PORTRAIT))
            while "ready" not in str(socket.recv(10)):
                pass
            talk(socket)
        time.sleep(0.1)


def _sound_and_interrupts(at: Address, until_s: float) -> None:
    """As much sound as may be queued, dropped by an interrupt, repeatedly."""

    def talk(socket: ClientConnection) -> None:
        while time.monotonic() < until_s:
            socket.send(bytes(50 * 2 * 48_000))
            socket.send('{"type": "interrupt"}')

    _sessions(at, until_s, talk)


def _large_updates(at: Address, until_s: float) -> None:
    """Updates of 5 MiB of JSON."""
    text = json.dumps({"type": "update", "steps": 2, "x": list(range(700_000))})

    def talk(socket: ClientConnection) -> None:
        while time.monotonic() < until_s:
            socket.send(text)
            time.sleep(0.05)

    _sessions(at, until_s, talk)


def _unfinished_messages(at: Address, until_s: float) -> None:
    """Ten messages of 30 MiB that never end."""
    while time.monotonic() < until_s:
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                with contextlib.suppress(Exception):
                    raw = stack.enter_context(_connected(at)).socket
                    raw.sendall(b"\x02\xff" + (30 * _MB).to_bytes(8, "big") + _MASK)
                    raw.sendall(bytes(29 * _MB))
            time.sleep(1.0)

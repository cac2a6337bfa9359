"""A recording client of `/stream` for tests, over the websockets library."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.server.media_files import picture
from tests.server.media_probe import Probe, probe

_TIMEOUT_S = 30.0


def pcm(seconds: float, rate: int = 16_000, level: int = 8000) -> bytes:
    """Noise, s16le mono."""
    count = round(seconds * rate)
    return np.random.default_rng(0).integers(-level, level + 1, count).astype("<i2").tobytes()


@dataclass
class Stream:
    """A connection that keeps what it receives.

    ``texts`` and ``data`` are the text and binary messages, ``kinds`` the types of both in order,
    ``times_s`` the monotonic time of each `fragment`. Silence of ``timeout_s`` raises
    ``TimeoutError``.
    """

    socket: ClientConnection
    timeout_s: float = _TIMEOUT_S
    texts: list[dict[str, Any]] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def start(self, portrait_file: bytes | None = None, **fields: Any) -> None:
        """``portrait_file`` is the content of the portrait's file; a grey picture by default."""
        if "avatar_id" not in fields:
            file = picture() if portrait_file is None else portrait_file
            fields.setdefault("portrait", base64.b64encode(file).decode())
        fields.setdefault("size", 128)
        self.send("start", **fields)

    def send_audio(self, sound: bytes) -> None:
        self.socket.send(sound)

    def next(self) -> str:
        """Receive a message; return its type or ``data``. Raises ``ConnectionClosed``."""
        message = self.socket.recv(self.timeout_s)
        if isinstance(message, bytes):
            self.data.append(message)
            kind = "data"
        else:
            self.texts.append(json.loads(message))
            kind = self.texts[-1]["type"]
            if kind == "fragment":
                self.times_s.append(time.monotonic())
        self.kinds.append(kind)
        return kind

    def until(self, kind: str) -> dict[str, Any]:
        """Receive messages up to the next text of that type."""
        while self.next() != kind:
            pass
        return self.texts[-1]

    def close_code(self) -> int:
        """Receive messages up to the close; return its code, 1006 for one without a close frame."""
        try:
            while True:
                self.next()
        except ConnectionClosed as closed:
            return 1006 if closed.rcvd is None else closed.rcvd.code

    def finish(self) -> dict[str, Any]:
        """Send `end` and receive everything; return the `done` message."""
        self.send("end")
        assert self.close_code() == 1000, self.texts[-1]
        assert self.texts[-1]["type"] == "done"
        return self.texts[-1]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [text for text in self.texts if text["type"] == kind]

    def video(self) -> Probe:
        return probe(b"".join(self.data))


@contextmanager
def stream_to(
    url: str, headers: Mapping[str, str] | None = None, timeout_s: float = _TIMEOUT_S
) -> Iterator[Stream]:
    """Connect to the service at ``url``, whose scheme is http."""
    with connect(
        url.replace("http://", "ws://") + "/stream",
        additional_headers=headers,
        max_size=None,
        compression=None,
        open_timeout=timeout_s,
        close_timeout=5.0,
    ) as socket:
        yield Stream(socket, timeout_s)


def run_session(url: str, chunks: Iterable[bytes], **start: Any) -> Stream:
    """Run a whole session that sends ``chunks``."""
    with stream_to(url) as stream:
        stream.start(**start)
        for chunk in chunks:
            stream.send_audio(chunk)
        stream.finish()
    return stream

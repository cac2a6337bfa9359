"""Messages between the API and a peer: a letter for the kind, a length, a body."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

OFFER, ANSWER, REFUSAL = b"o", b"a", b"r"  # JSON
ACCEPTED, PROCEED = b"k", b"p"  # the offer can be answered, and shall be
WITH_SOUND = b"s"  # of ACCEPTED: the client takes sound; otherwise empty
EVENT, MEDIA = b"e", b"m"  # to the peer: JSON for the data channel; init segment or fragment
SOUND = b"n"  # to the peer: PCM at SAMPLE_RATE, of the fragment that follows
COMMAND, AUDIO = b"c", b"s"  # from the peer: a text of the data channel; PCM at SAMPLE_RATE

SAMPLE_RATE = 48_000  # Opus decodes to it; workers resample for the model
_HEAD = struct.Struct(">cI")
_MAX_BYTES = 64 << 20


class Link:
    """One end of the socket. `receive` raises ``ConnectionError`` when the other has gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Link:
        """A link over a connected socket, which it owns."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    async def receive(self) -> tuple[bytes, bytes]:
        """Kind and body of the next message."""
        try:
            kind, size = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            if size > _MAX_BYTES:
                raise ConnectionError(f"a message of {size} bytes, expected at most {_MAX_BYTES}")
            return kind, await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the other end has closed") from error

    async def send(self, kind: bytes, body: bytes) -> None:
        """Send a message and wait while the other end is far behind."""
        self._writer.write(_HEAD.pack(kind, len(body)) + body)
        await self._writer.drain()

    async def send_json(self, kind: bytes, fields: dict[str, Any]) -> None:
        """`send` of a JSON object."""
        await self.send(kind, json.dumps(fields).encode())

    def close(self) -> None:
        """Close the socket; the other end sees it."""
        self._writer.close()

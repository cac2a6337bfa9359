"""Messages between a worker and its decoders: one letter, a length, that many bytes.

Nothing is pickled: a decoder's output is as untrusted as the file that it decodes.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

REQUEST, BLOB = b"R", b"F"  # to a decoder
PICTURE, SPEECH, BLOCK, END, ERROR = b"P", b"S", b"B", b"Z", b"E"  # from it

_HEAD = struct.Struct("<cQ")


class Closed(Exception):
    """The other side is gone."""


def send(sock: socket.socket, kind: bytes, *parts: bytes | memoryview) -> None:
    """Raises ``OSError`` when the other side is gone, or takes nothing for the socket's timeout."""
    sock.sendall(_HEAD.pack(kind, sum(len(part) for part in parts)))
    for part in parts:
        sock.sendall(part)


def send_json(sock: socket.socket, kind: bytes, fields: Mapping[str, Any]) -> None:
    send(sock, kind, json.dumps(fields).encode())


def receive(sock: socket.socket, most: int) -> tuple[bytes, bytearray]:
    """The next message. Raises `Closed`, ``OSError``, and ``ValueError`` beyond ``most`` bytes."""
    kind, length = _HEAD.unpack(_exactly(sock, _HEAD.size))
    if length > most:
        raise ValueError(f"length = {length}, expected at most {most} bytes")
    return kind, _exactly(sock, length)


def _exactly(sock: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise Closed
        view = view[got:]
    return data

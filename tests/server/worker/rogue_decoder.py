"""Decoders that obey their upload; with `confined`, in the sandbox of the real ones.

Run as a program by `Sandbox`.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
from pathlib import Path

from model.portrait.image import LoadedPicture, PictureError
from server.worker import decoder, wire

decode = decoder.load_upload


def obey(blob: bytes) -> LoadedPicture:
    """In the sandbox: the exception's name goes back as a picture that is none."""
    if blob.startswith(b"\xff\xd8"):  # with which decoders warm up
        return decode(blob)
    try:
        if blob == b"open a file":
            Path("/etc/hostname").read_text()
        elif blob == b"open a socket":
            socket.socket()
        elif blob == b"start a process":
            os.fork()
        elif blob == b"take 2 GB":
            bytearray(2 << 30)
        while blob == b"spin":
            pass
    except Exception as error:
        raise PictureError(type(error).__name__) from error
    raise PictureError("nothing refused it")


def serve(sock: socket.socket, memory: int = -1) -> None:
    wire.receive(sock, 1 << 20)
    _, blob = wire.receive(sock, 1 << 20)
    deed = bytes(blob).decode()
    if deed == "abort":
        os.abort()
    if deed == "exit":
        os._exit(0)
    if deed == "hang up":
        sock.close()
    elif deed == "garbage":
        sock.sendall(b"\xff" * 100)
    elif deed == "endless":
        wire.send(sock, wire.SPEECH, struct.pack("<d", 1.0))
        try:
            while True:
                samples = bytes(4 * 48_000)
                wire.send(sock, wire.BLOCK, struct.pack("<I", 48_000), samples)
        except OSError:
            return
    elif deed == "pickle":
        wire.send(sock, wire.SPEECH, pickle.dumps({"duration_s": None}))
    elif deed == "wrong size":
        wire.send(sock, wire.PICTURE, struct.pack("<4I", *[1 << 31] * 4))
    elif deed == "cut short":
        os.ftruncate(memory, 0)
        wire.send(sock, wire.PICTURE, struct.pack("<4I", 100, 100, 100, 100))
    elif deed == "bug":
        wire.send_json(sock, wire.ERROR, {"code": "internal_error", "detail": "secret"})
    else:
        wire.send(sock, wire.PICTURE, struct.pack("<4I", 1, 1, 1, 1))


def main(control: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not descriptors:
            return
        if os.fork() == 0:
            serve(socket.socket(fileno=descriptors[0]), *descriptors[1:])
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    control = socket.socket(fileno=int(sys.argv[-1]))
    if "confined" in sys.argv:
        decoder.load_upload = obey
        decoder._STEP_CPU_S = 1
        decoder.main(control)
    else:
        main(control)

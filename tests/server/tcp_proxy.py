"""A TCP proxy that tests can cut, freeze and point at another service."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Proxy:
    """Forwards each connection to ``target``, the URL of a service.

    ``cut_after`` is how many more bytes of the answers pass before everything is cut; ``frozen``:
    nothing passes any more, unnoticed.
    """

    def __init__(self, target: str) -> None:
        self.target, self.cut_after, self.frozen = target, -1, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._pairs)

    def cut(self) -> None:
        """Reset every connection."""
        for pair in list(self._pairs):
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                place = urlsplit(self.target)
                try:
                    server = socket.create_connection((place.hostname or "", place.port or 80))
                except OSError:
                    client.close()
                    continue
                self._pairs.append((client, server))
                threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
                back = threading.Thread(
                    target=self._pump, args=(server, client), kwargs={"answer": True}, daemon=True
                )
                back.start()

    def _pump(self, source: socket.socket, sink: socket.socket, answer: bool = False) -> None:
        frozen = False
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                frozen |= self.frozen
                if frozen:
                    continue
                if answer and 0 <= self.cut_after < len(data):
                    sink.sendall(data[: self.cut_after])
                    self.cut_after = -1
                    self.cut()
                    return
                if answer and self.cut_after >= 0:
                    self.cut_after -= len(data)
                sink.sendall(data)
        if not frozen:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)


@contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()

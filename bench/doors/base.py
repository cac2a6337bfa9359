"""What a door is: a way into a service, as hostile tests and `bench/abuse.py` use each."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
BOUNDARY = "b"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Address:
    """Where the service is, and what every request says, such as an API key."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def dial(self, begin: bytes = b"") -> socket.socket:
        """A bare connection that has sent ``begin``, as far as it was taken."""
        place = urlsplit(self.url)
        sock = socket.create_connection((place.hostname or "", place.port or 80), timeout=5)
        with contextlib.suppress(OSError):
            sock.sendall(begin)
        return sock

    def request(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        """The head of an HTTP/1.1 request."""
        fields = {"Host": urlsplit(self.url).netloc, **self.headers, **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()


Flood = Callable[[Address, float], None]  # until when: monotonic seconds


@dataclass(frozen=True)
class Answer:
    """``code`` is "ok" for what was asked for, the code of a refusal, or "cut" without either."""

    code: str
    detail: str = ""


def refusal(body: str | bytes) -> Answer:
    """The problem document of a refused request; "cut" if ``body`` is none."""
    try:
        problem = json.loads(body)
        return Answer(problem["code"], problem["detail"])
    except (ValueError, KeyError, TypeError):
        return Answer("cut", str(body)[:200])


class Door(Protocol):
    """A way in. A new one is a class with these members and a line in `bench.doors.DOORS`."""

    @property
    def name(self) -> str: ...

    @property
    def media(self) -> Mapping[str, bytes]:
        """Files that the service decodes, by name: good examples, which may be damaged."""

    @property
    def floods(self) -> Mapping[str, Flood]:
        """Abuse that only this door is open to."""

    def ask(self, at: Address, files: Mapping[str, bytes]) -> Answer:
        """Make one whole request with ``files`` instead of the examples; wait for its end."""

    def whole(self, at: Address) -> bytes:
        """The bytes on the wire of a whole request, whose answer need not be read."""

    def half(self, at: Address) -> bytes:
        """The bytes that begin a request which goes on for as long as bytes trickle in."""


@dataclass(frozen=True)
class FormDoor:
    """A call that takes a multipart form and answers when it is done."""

    name: str
    path: str
    media: Mapping[str, bytes]
    fields: Mapping[str, str] = field(default_factory=dict)
    floods: Mapping[str, Flood] = field(default_factory=dict)

    def ask(self, at: Address, files: Mapping[str, bytes]) -> Answer:
        named = {name: ("f", blob) for name, blob in {**self.media, **files}.items()}
        try:
            answer = httpx.post(
                at.url + self.path,
                files=named,
                data=dict(self.fields),
                headers=dict(at.headers),
                timeout=_ANSWER_S,
            )
        except httpx.TransportError as error:
            return Answer("cut", str(error))
        return Answer("ok") if answer.is_success else refusal(answer.text)

    def whole(self, at: Address) -> bytes:
        disposition = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{{}}"{{}}\r\n\r\n'
        body = b""
        for name, text in self.fields.items():
            body += disposition.format(name, "").encode() + text.encode() + b"\r\n"
        for name, blob in self.media.items():
            body += disposition.format(name, '; filename="f"').encode() + blob + b"\r\n"
        body += f"--{BOUNDARY}--\r\n".encode()
        return at.request("POST", self.path, {"Content-Length": str(len(body)), **FORM}) + body

    def half(self, at: Address) -> bytes:
        head = at.request("POST", self.path, {"Content-Length": "1000000", **FORM})
        return head + f"--{BOUNDARY}\r\n".encode()


def crowd(
    at: Address, until_s: float, begin: bytes, *, drip: bytes = b"", most: int = 2000
) -> None:
    """Open connections that send ``begin`` and then nothing, or ``drip`` every half second."""
    held: list[socket.socket] = []
    try:
        while time.monotonic() < until_s:
            for _ in range(min(100, most - len(held))):
                with contextlib.suppress(OSError):
                    held.append(at.dial(begin))
            for sock in held if drip else []:
                with contextlib.suppress(OSError):
                    sock.send(drip)
            time.sleep(0.5)
    finally:
        for sock in held:
            sock.close()

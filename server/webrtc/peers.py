"""The API's side of peers: starts them, and is a session's channel to one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import Any
from weakref import WeakValueDictionary

from server import process
from server.errors import KINDS, ServiceError
from server.webrtc import wire
from server.webrtc.offer import Offer

log = logging.getLogger("fada.api")

_REPLY_S = 15.0  # a STUN server that is silent takes 5
_MAX_CHECKS = 4  # offers that are read at once: their senders have no place yet
_MAX_CHECKS_OF_CLIENT = 2  # its others wait for these, not before other clients'
_TURN_S = 5.0  # for an offer to be read
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class Peers:
    """Starts a peer for each session, from a template that the first one starts."""

    def __init__(self) -> None:
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._checks = asyncio.Semaphore(_MAX_CHECKS)
        self._of_client = WeakValueDictionary[str, asyncio.Semaphore]()

    @property
    def process_id(self) -> int | None:
        """Of the template, whose children the peers are."""
        return None if self._template is None else self._template.pid

    @asynccontextmanager
    async def reading(self, offer: Offer, *, client: str = "") -> AsyncIterator[PeerLink]:
        """A peer that can answer ``client``'s ``offer``, and ends with the block.

        Raises `ServiceError` ``bad_request`` or ``invalid_option`` for an offer that cannot be
        answered, ``busy`` while too many are being read.
        """
        async with AsyncExitStack() as stack:
            async with self.turn(client):
                ours, theirs = socket.socketpair()
                with theirs:
                    self._hand_over(theirs)
                link = await wire.Link.over(ours)
                stack.callback(link.close)
                died = ServiceError("bad_request", "the offer ended the process that read it")
                accepted = await _ask(link, wire.OFFER, offer.to_json(), died=died)
            yield PeerLink(link, sends_sound=accepted == wire.WITH_SOUND)

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for the turn of an offer of ``client``; raises ``busy`` when it takes too long."""
        own = self._of_client.setdefault(client, asyncio.Semaphore(_MAX_CHECKS_OF_CLIENT))
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_TURN_S):
                    await stack.enter_async_context(own)
                    await stack.enter_async_context(self._checks)
            except TimeoutError as error:
                raise ServiceError("busy", "too many offers are being read") from error
            yield

    def close(self) -> None:
        """End the template and all peers."""
        if self._template is not None and self._control is not None:
            self._control.close()
            process.stop(self._template, timeout_s=1.0)

    def _hand_over(self, sock: socket.socket) -> None:
        for _ in range(2):
            if self._template is None or self._template.poll() is not None:
                self._start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [b"f"], [sock.fileno()])
                return
            except OSError:
                log.warning("the template of WebRTC peers has ended; it is started again")
                self.close()
                self._template = None
        raise ServiceError("internal_error", "the processes for WebRTC do not start")

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "server.webrtc.template", str(theirs.fileno())]
            kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
            self._template = process.spawn(command, kept, inherit=False, pass_fds=[theirs.fileno()])
        self._control = ours


def check_installed() -> None:
    """Raises `ServiceError` ``not_found`` where WebRTC is not installed."""
    if find_spec("aiortc") is None:
        raise ServiceError("not_found", "WebRTC needs aiortc: pip install 'fada[webrtc]'")


class PeerLink:
    """A session's `Channel` to the client whose offer was read, who takes sound or does not."""

    def __init__(self, link: wire.Link, *, sends_sound: bool) -> None:
        self._link, self.sends_sound = link, sends_sound

    async def answer(self) -> str:
        """Begin to connect; returns the answer's SDP. To be called first, and once."""
        died = ServiceError("internal_error", "the session's process ended")
        return str(json.loads(await _ask(self._link, wire.PROCEED, b"", died=died))["sdp"])

    async def receive(self) -> tuple[bytes, bytes]:
        """Kind (`wire.AUDIO` or `wire.COMMAND`) and content of the client's next message.

        Raises ``ConnectionError`` when the client has gone.
        """
        return await self._link.receive()

    async def send(self, fields: dict[str, Any]) -> None:
        """Send an event over the data channel."""
        await self._link.send_json(wire.EVENT, fields)

    async def send_media(self, data: bytes, pcm: bytes = b"") -> None:
        """Send the init segment, or a fragment with its sound."""
        if pcm:
            await self._link.send(wire.SOUND, pcm)
        await self._link.send(wire.MEDIA, data)


async def _ask(link: wire.Link, kind: bytes, body: bytes, *, died: ServiceError) -> bytes:
    """What the peer replies; raises `ServiceError` for a refusal, ``died`` if it ends."""
    try:
        async with asyncio.timeout(_REPLY_S):
            await link.send(kind, body)
            kind, body = await link.receive()
    except TimeoutError as error:
        raise ServiceError("timeout", f"no answer to the offer within {_REPLY_S:g} s") from error
    except ConnectionError as error:
        raise died from error
    if kind != wire.REFUSAL:
        return body
    fields = json.loads(body)
    code = fields["code"] if fields["code"] in KINDS else "internal_error"
    raise ServiceError(code, str(fields["detail"])[:500])

"""A room's transport, replaced: no LiveKit server is to be had from package registries.

Tracks, sources, streams and everything above are the real ones; only what would cross the network
is handed from one `Room` to another in this process.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from livekit import rtc


class Reader:
    """The receiving end of a byte stream."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self.info = SimpleNamespace(attributes=attributes, stream_id=uuid.uuid4().hex)
        self.chunks = asyncio.Queue[bytes | None]()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.chunks.get()
        if chunk is None:
            raise StopAsyncIteration
        return chunk


class Writer:
    def __init__(self, readers: list[Reader]) -> None:
        self._readers = readers

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        for reader in self._readers:
            reader.chunks.put_nowait(data)

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        for reader in self._readers:
            reader.chunks.put_nowait(None)


class Publication:
    def __init__(self, track: Any, options: rtc.TrackPublishOptions) -> None:
        self.track, self.options, self.kind = track, options, track.kind
        self.sid = uuid.uuid4().hex
        self.subscribed = asyncio.Event()
        self.subscribed.set()

    async def wait_for_subscription(self) -> None:
        await self.subscribed.wait()


class Participant:
    kind = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
    state = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE

    def __init__(self, room: Room, identity: str) -> None:
        self.room, self.identity = room, identity
        self.attributes: dict[str, str] = {}
        self.track_publications: dict[str, Publication] = {}
        self._rpc_handlers: dict[str, Callable[[rtc.RpcInvocationData], str]] = {}
        self.calls: list[tuple[str, str]] = []  # remote procedures that were called here

    def register_rpc_method(self, method: str, handler: Callable[..., str]) -> None:
        self._rpc_handlers[method] = handler

    async def perform_rpc(
        self, *, destination_identity: str, method: str, payload: str, **_: Any
    ) -> str:
        await asyncio.sleep(0.005)
        other = self.room.others[destination_identity].local_participant
        if method not in other._rpc_handlers:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, method)
        other.calls.append((method, payload))
        call = rtc.RpcInvocationData(uuid.uuid4().hex, self.identity, payload, 10.0, method)
        return other._rpc_handlers[method](call)

    async def stream_bytes(
        self, name: str, *, topic: str, destination_identities: list[str], attributes: Any
    ) -> Writer:
        readers = []
        for identity in destination_identities:
            reader = Reader(dict(attributes))
            self.room.others[identity].byte_handlers[topic](reader, self.identity)
            readers.append(reader)
        return Writer(readers)

    async def publish_track(self, track: Any, options: rtc.TrackPublishOptions) -> Publication:
        publication = Publication(track, options)
        self.track_publications[publication.sid] = publication
        self.room.emit("local_track_published", publication, track)
        for other in self.room.others.values():
            other.emit("track_published", publication, self)
        return publication


class Room(rtc.EventEmitter[str]):
    """``members`` is the server: it is shared by the rooms of all who joined."""

    def __init__(self, members: dict[str, Room], identity: str, name: str = "room") -> None:
        super().__init__()
        self._members, self.name = members, name
        self.local_participant = Participant(self, identity)
        self.byte_handlers: dict[str, Callable[[Any, str], None]] = {}
        self.connection_state = rtc.ConnectionState.CONN_DISCONNECTED

    @property
    def others(self) -> dict[str, Room]:
        mine = self.local_participant.identity
        return {identity: room for identity, room in self._members.items() if identity != mine}

    @property
    def remote_participants(self) -> dict[str, Participant]:
        return {identity: room.local_participant for identity, room in self.others.items()}

    def isconnected(self) -> bool:
        return self.connection_state == rtc.ConnectionState.CONN_CONNECTED

    def join(self) -> Room:
        self._members[self.local_participant.identity] = self
        self.connection_state = rtc.ConnectionState.CONN_CONNECTED
        self.emit("connection_state_changed", self.connection_state)
        for other in self.others.values():
            other.emit("participant_connected", self.local_participant)
            other.emit("participant_active", self.local_participant)
        return self

    async def disconnect(self) -> None:
        self._members.pop(self.local_participant.identity, None)
        self.connection_state = rtc.ConnectionState.CONN_DISCONNECTED
        self.emit("connection_state_changed", self.connection_state)
        self.emit("disconnected", rtc.DisconnectReason.CLIENT_INITIATED)
        for other in self.others.values():
            other.emit("participant_disconnected", self.local_participant)

    def register_byte_stream_handler(self, topic: str, handler: Callable[..., None]) -> None:
        if topic in self.byte_handlers:
            raise ValueError(f"byte stream handler for topic {topic!r} already set")
        self.byte_handlers[topic] = handler

    def unregister_byte_stream_handler(self, topic: str) -> None:
        self.byte_handlers.pop(topic, None)

"""How far a live session has come on both sides, so that a new connection can go on with it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence

from websockets.exceptions import ConnectionClosed

from fada_client import wire
from fada_client.errors import Busy, ConnectionLost, FadaError, NoWorker, error_of
from fada_client.types import Done, Event, Fragment, InitSegment, Interrupted, Motion, Ready

RESUME_S = 10.0  # how long the service keeps a session without a connection
RETRY_S = 0.2
# A dead connection is noticed within their sum, while the service still keeps what was lost.
PING_S, PONG_S = 4.0, 8.0
_TAIL_BYTES = 8 << 20  # more than buffers on the way hold
_MOVED = (1001, 1012, 1014)  # closes of a process or a proxy that ends
_NO_PONG = (1011, "keepalive ping timeout")


class Progress:
    """Counts the messages of both sides and keeps the last ones that were sent."""

    def __init__(self) -> None:
        self.done = False
        self._reader = wire.EventReader()
        self._ready: Ready | None = None
        self._begun = False
        self._next_index = self._interrupted = 0
        self._sent = self._tail_bytes = 0
        self._tail: deque[str | bytes] = deque()

    @property
    def resumable(self) -> bool:
        """Whether the service has begun the session, and lets it be resumed."""
        return self._ready is not None and bool(self._ready.token) and not self.done

    def sent(self, data: str | bytes) -> None:
        """``data`` is the next message after `start`, whether it arrives or not."""
        self._sent += 1
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes > _TAIL_BYTES and len(self._tail) > 1:
            self._tail_bytes -= len(self._tail.popleft())

    def received(self, message: str | bytes) -> Event | None:
        """The event that a message completes, if any. Raises the service's errors."""
        event = self._reader.read(message)
        if isinstance(event, Ready):
            self._ready = event
        elif isinstance(event, InitSegment):
            if self._begun:  # it came again
                return None
            self._begun = True
        elif isinstance(event, Fragment | Motion):
            self._next_index = event.index + 1
        elif isinstance(event, Interrupted):
            self._interrupted += 1
        self.done |= isinstance(event, Done)
        return event

    def resume_message(self) -> str:
        """The first message of a new connection."""
        assert self._ready is not None
        self._reader.resume(begun=self._next_index > 0)
        return wire.message(
            "resume",
            session_id=self._ready.session_id,
            token=self._ready.token,
            next_index=self._next_index,
            interrupted=self._interrupted,
        )

    def missing(self, answer: str | bytes) -> Sequence[str | bytes]:
        """The messages that the service lacks, by its answer to `resume_message`.

        Raises its error, or `ConnectionLost` when they are not kept any more.
        """
        fields = {} if isinstance(answer, bytes) else json.loads(answer)
        if fields.get("type") == "error":
            raise error_of(fields)
        if fields.get("type") != "resumed":
            raise ConnectionLost(f"resume was answered by {str(fields.get('type'))!r}")
        count = max(0, self._sent - int(fields["messages"]))
        if count > len(self._tail):
            raise ConnectionLost("more was lost with the connection than the client keeps")
        return list(self._tail)[len(self._tail) - count :]


def cut_off(closed: ConnectionClosed) -> bool:
    """Whether neither side wanted the connection to end."""
    if closed.rcvd is not None:
        return closed.rcvd.code in _MOVED or (closed.rcvd.code, closed.rcvd.reason) == _NO_PONG
    return closed.sent is None or closed.sent.code != 1000


def may_retry(error: FadaError) -> bool:
    """Whether a refused `resume` may be taken a moment later."""
    return isinstance(error, Busy | NoWorker)


def not_resumed(error: Exception) -> FadaError:
    """The error of a stream whose session is lost with its connection."""
    return ConnectionLost(f"the connection was lost, and the session cannot be resumed: {error}")

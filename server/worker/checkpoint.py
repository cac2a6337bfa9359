"""What is kept of a job so that any other worker can go on with it.

The broker stores it in one step with the event that it belongs to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from media.fmp4 import MuxerState
from model.types import SessionState, pack, unpack


@dataclass(frozen=True)
class Snapshot:
    """Where a video stands right after an event.

    ``state`` and ``video`` are those after its last fragment; ``closed``: it was the last of all.
    ``live`` is what a live session holds beside them, packed.
    """

    state: SessionState
    video: MuxerState
    closed: bool = False
    live: bytes = b""


@dataclass(frozen=True)
class Heard:
    """What a snapshot has taken in: commands up to the stream entry ``entry``, whose sound ended at
    byte ``edge`` of the session's; and that the reader has fragments up to ``read``."""

    entry: str
    edge: int
    read: int


def pack_saved(snapshot: Snapshot, heard: Heard) -> bytes:
    """The inverse of `unpack_saved`."""
    video = snapshot.video
    arrays: dict[str, Any] = {
        "state": np.frombuffer(snapshot.state.to_bytes(), np.uint8),
        "live": np.frombuffer(snapshot.live, np.uint8),
        "sound": video.sound,
    }
    facts: dict[str, object] = {
        "closed": snapshot.closed,
        "video": [video.sequence, video.frames, video.samples_in, video.samples_out],
        "heard": [heard.entry, heard.edge, heard.read],
    }
    return pack(arrays, facts)


def unpack_saved(blob: bytes) -> tuple[Snapshot, Heard]:
    """Raises ``ValueError`` for bytes that `pack_saved` did not make."""
    arrays, facts = unpack(blob)
    known: dict[str, Any] = facts
    sequence, frames, samples_in, samples_out = known["video"]
    sound = arrays["sound"].astype(np.int16)
    snapshot = Snapshot(
        SessionState.from_bytes(arrays["state"].tobytes()),
        MuxerState(sequence, frames, samples_in, samples_out, sound),
        bool(known["closed"]),
        arrays["live"].tobytes(),
    )
    return snapshot, Heard(*known["heard"])


class Inbox:
    """The commands that a job has heard and no snapshot holds yet.

    A command counts as held once all sound that came before it, its own included, was taken in.
    """

    def __init__(self, entry: str, edge: int) -> None:
        self._held, self._edge, self._received = entry, edge, edge
        self._waiting: deque[tuple[str, int]] = deque()

    def note(self, entry: str, sound_bytes: int) -> None:
        """A command came, with so many bytes of sound."""
        self._received += sound_bytes
        self._waiting.append((entry, self._received))

    def held(self, taken: int) -> tuple[str, int]:
        """For a snapshot by which ``taken`` bytes were taken in: the last entry that it holds, and
        the byte at which that one's sound ended."""
        while self._waiting and self._waiting[0][1] <= taken:
            self._held, self._edge = self._waiting.popleft()
        return self._held, self._edge

"""What is kept of a job so that any other worker can go on with it.

The broker stores it in one step with the event that it belongs to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from media.fmp4 import MuxerState
from model.types import Floats, SessionState, pack, unpack
from server.broker.messages import FORMAT, UNVERSIONED, reads


@dataclass(frozen=True)
class PartialWindow:
    """A denoised window, and how many of its frames were drawn; ``before`` is the state before it.

    A session that resumes within a window draws the rest of it: denoised again, with what was
    pushed meanwhile, it would be another one.
    """

    speech: bool
    latents: Floats
    before: SessionState
    sent: int

    @property
    def state(self) -> SessionState:
        """The session's after the frames that were drawn."""
        return self.before.after(self.latents, self.sent) if self.sent else self.before

    @property
    def state_at_end(self) -> SessionState:
        """The session's once all frames are drawn."""
        return self.before.after(self.latents, len(self.latents))


@dataclass(frozen=True)
class Snapshot:
    """Where a video stands right after an event.

    ``state`` and ``video`` are those after its last fragment; ``closed``: it was the last of all.
    ``speech`` is the state of a live session's `LiveSpeech`, ``partial`` the window that it is in.
    """

    state: SessionState
    video: MuxerState
    closed: bool = False
    speech: bytes = b""
    partial: PartialWindow | None = None


@dataclass(frozen=True)
class InboxPosition:
    """How much of its job's in-stream a snapshot includes.

    Commands up to the stream entry ``entry``, whose sound ended at byte ``edge`` of the session's.
    ``read``: the fragment up to which the reader has all.
    """

    entry: str
    edge: int
    read: int


def pack_saved(snapshot: Snapshot, position: InboxPosition) -> bytes:
    """The inverse of `unpack_saved`."""
    video, partial = snapshot.video, snapshot.partial
    arrays: dict[str, Any] = {
        "state": _bytes(snapshot.state.to_bytes()),
        "speech": _bytes(snapshot.speech),
        "sound": video.sound,
    }
    facts: dict[str, object] = {
        "format": FORMAT,
        "closed": snapshot.closed,
        "video": [video.sequence, video.frames, video.samples_in, video.samples_out],
        "encoder": video.encoder,
        "position": [position.entry, position.edge, position.read],
        "partial": None,
    }
    if partial is not None:
        arrays |= {"latents": partial.latents, "before": _bytes(partial.before.to_bytes())}
        facts["partial"] = [partial.speech, partial.sent]
    return pack(arrays, facts)


def unpack_saved(blob: bytes) -> tuple[Snapshot, InboxPosition]:
    """Raises ``ValueError`` for bytes that `pack_saved` did not make, or in an unknown format."""
    arrays, facts = unpack(blob)
    known: dict[str, Any] = facts
    written = known.get("format", UNVERSIONED)
    if not reads(FORMAT, written):
        raise ValueError(f"format of the snapshot = {written}, expected {FORMAT - 1} or {FORMAT}")
    sequence, frames, samples_in, samples_out = known["video"]
    partial = None
    if known["partial"] is not None:
        speech, sent = known["partial"]
        before = SessionState.from_bytes(arrays["before"].tobytes())
        partial = PartialWindow(
            speech=speech,
            latents=arrays["latents"].astype(np.float32),
            before=before,
            sent=sent,
        )
    snapshot = Snapshot(
        state=SessionState.from_bytes(arrays["state"].tobytes()),
        video=MuxerState(
            sequence=sequence,
            frames=frames,
            samples_in=samples_in,
            samples_out=samples_out,
            sound=arrays["sound"].astype(np.int16),
            encoder=known.get("encoder", ""),
        ),
        closed=bool(known["closed"]),
        speech=arrays["speech"].tobytes(),
        partial=partial,
    )
    entry, edge, read = known["position"]
    return snapshot, InboxPosition(entry, edge, read)


def _bytes(blob: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(blob, np.uint8)


class Inbox:
    """The commands that a job has received and no snapshot holds yet.

    A command counts as held once all sound up to its own was consumed.
    """

    def __init__(self, entry: str, edge: int) -> None:
        self._held, self._edge, self._received = entry, edge, edge
        self._waiting: deque[tuple[str, int]] = deque()

    def receive(self, entry: str, sound_bytes: int) -> None:
        """A command came, with so many bytes of sound."""
        self._received += sound_bytes
        self._waiting.append((entry, self._received))

    def held(self, consumed: int) -> tuple[str, int]:
        """For a snapshot after ``consumed`` bytes of sound: the last entry that it holds, and the
        byte at which that entry's sound ended."""
        while self._waiting and self._waiting[0][1] <= consumed:
            self._held, self._edge = self._waiting.popleft()
        return self._held, self._edge

"""The messages between API and workers: requests, events, commands and heartbeats.

A job carries the `FORMAT` of what is stored of it: of its request and its avatar, then of its last
snapshot. An avatar carries its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter

from server.api.protocol import (
    AnimationOptions,
    AvatarView,
    Emotion,
    FaceState,
    MarksView,
    ModelView,
)
from server.broker.amount import NOTHING, Amount

# Raise it with every change that the release before cannot read; `reads` then covers both. New
# fields with defaults need none: readers ignore fields that they do not know.
FORMAT = 3
UNVERSIONED = 1  # the format of what carries none


def reads(reader: int, written: int) -> bool:
    """Whether a process of format ``reader`` can go on from what one of ``written`` stored."""
    return written in (reader - 1, reader)


# A worker of the release before forbids options that it does not know, so defaults are not sent.
_Options = Annotated[
    AnimationOptions,
    PlainSerializer(lambda options: options.model_dump(exclude_defaults=True)),
]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Heartbeat(_Message):
    """A worker's state: loaded models, capacity for live sessions, how many it holds, how many it
    would take from other workers (``live_spare``), whether its sessions need all of its cores,
    which it shares with the other workers on ``host``, and whether they are ``late``; ``detail``:
    what it prepares meanwhile, if anything; ``format``: the worker's `FORMAT`; ``folder``: the
    token of the folder that it shares, if any."""

    models: list[ModelView]
    live_places: int
    live_running: int = 0
    live_spare: int = 0
    busy: bool = False
    late: bool = False
    host: str = ""
    detail: str = ""
    format: int = UNVERSIONED
    folder: str = ""


class _Request(_Message):
    """``trace`` is the parent of the job's span (`server.traces.span`). ``reader`` is who
    alone can read the output: an API process (`server.broker.liveness.register_reader`) or the
    connections of a live session (`server.broker.attachment`); empty if any can.
    ``owner`` is the client that owns the job and its avatar; empty if every client does.
    ``keep``: its video is stored for later readers, without waiting for them; ``in_folder``: in the
    folder that API and workers share, instead of Redis. ``uploads`` is what its uploads take."""

    trace: dict[str, str] = Field(default_factory=dict)
    reader: str = ""
    owner: str = ""
    uploads: Amount = NOTHING
    keep: bool = False
    in_folder: bool = False


class AnimateRequest(_Request):
    """Make one video."""

    kind: Literal["animate"] = "animate"
    options: _Options
    model: str
    seed: int
    avatar_id: str | None = None


class LiveRequest(_Request):
    """Run a live session: audio arrives as `AudioChunk` while video is published.

    ``token`` lets its client resume it; empty: it ends with its connection. ``place`` is what it
    holds of its client's places (`server.api.access`). ``pcm``: its fragments come with their sound
    as samples too.
    """

    kind: Literal["live"] = "live"
    options: _Options
    model: str
    seed: int
    sample_rate: int
    idle: bool
    avatar_id: str | None = None
    token: str = ""
    place: str = ""
    pcm: bool = False


class AvatarRequest(_Request):
    """Prepare a portrait and store it as an avatar."""

    kind: Literal["avatar"] = "avatar"
    model: str
    avatar_id: str


class VerifyRequest(_Request):
    """Read the marks of an uploaded video."""

    kind: Literal["verify"] = "verify"
    model: str = ""  # any worker can


class Queued(_Message):
    """The first event of every job."""

    type: Literal["queued"] = "queued"


class Started(_Message):
    """The input is valid and a video follows; ``data`` is its init segment.

    Of motion, ``data`` is the first of the JSON lines; there are no codecs.
    ``total_s`` is the length of the whole video in seconds, if known; ``warnings`` name what was
    repaired in the sound.
    """

    type: Literal["started"] = "started"
    seed: int
    width: int
    height: int
    fps: int
    codecs: str
    total_s: float | None
    warnings: list[str] = Field(default_factory=list)
    data: bytes = Field(exclude=True, default=b"")

    @property
    def motion(self) -> bool:
        """Whether motion follows, not a video."""
        return not self.codecs


class JobFragment(_Message):
    """One ``moof`` + ``mdat``; the last may hold audio alone (``frames`` 0). Of motion, packed
    frames (`server.motion`).

    ``consumed_bytes`` counts the bytes of `AudioChunk` that a live session has consumed so far.
    ``stored``: entry and size, as in `pack_index`, of a fragment whose ``data`` is in the folder.
    ``pcm``, of ``pcm_bytes``, is the sound of its pictures, s16le mono at 48 kHz, where the request
    asks for it: AAC would hold the last 43 ms back.
    """

    type: Literal["fragment"] = "fragment"
    index: int
    first_frame: int
    frames: int
    start_s: float
    duration_s: float
    speech: bool = True
    consumed_bytes: int = 0
    stored: tuple[str, int] | None = None
    pcm_bytes: int = 0
    data: bytes = Field(exclude=True, default=b"")
    pcm: bytes = Field(exclude=True, default=b"")


class JobInterrupted(_Message):
    """Speech from before `Interrupt` ends here; ``consumed_bytes`` as in `JobFragment`."""

    type: Literal["interrupted"] = "interrupted"
    at_s: float
    consumed_bytes: int


class AvatarCreated(_Message):
    """The end of a successful avatar job."""

    type: Literal["avatar_created"] = "avatar_created"
    avatar: AvatarView


class Verified(_Message):
    """The end of a successful `VerifyRequest`."""

    type: Literal["verified"] = "verified"
    marks: MarksView


class JobDone(_Message):
    """The end of a complete video.

    Of a kept one, ``init`` is an init segment for later readers, with the video's length and its
    manifest, if it is signed; ``index`` is `pack_index` of its fragments.
    """

    type: Literal["done"] = "done"
    frames: int
    duration_s: float
    init: bytes = Field(exclude=True, default=b"")
    index: bytes = Field(exclude=True, default=b"")


class Failed(_Message):
    """The end of a failed job; ``code`` is one of `server.errors.KINDS`."""

    type: Literal["failed"] = "failed"
    code: str
    detail: str


class Cancelled(_Message):
    """The end of a job that was cancelled."""

    type: Literal["cancelled"] = "cancelled"


Ending = AvatarCreated | Verified | JobDone | Failed | Cancelled


class Ack(_Message):
    """Backpressure: the reader has forwarded every fragment up to ``index``."""

    type: Literal["ack"] = "ack"
    index: int


class AudioChunk(_Message):
    """PCM of a live session, s16le mono, in chunks of any length."""

    type: Literal["audio"] = "audio"
    data: bytes = Field(exclude=True, default=b"")


class Interrupt(_Message):
    """Drop the audio that was sent before this command."""

    type: Literal["interrupt"] = "interrupt"


class Update(_Message):
    """Change options from the next window on, or the face's ``state``; ``None`` keeps one."""

    type: Literal["update"] = "update"
    steps: int | None = None
    audio_cfg: float | None = None
    reference_cfg: float | None = None
    head_motion: float | None = None
    expressiveness: float | None = None
    gaze: Literal["natural", "camera"] | None = None
    blink_rate: float | None = None
    emotion: Emotion | None = None
    emotion_strength: float | None = None
    state: FaceState | None = None


LIVE_OPTIONS = tuple(name for name in Update.model_fields if name not in ("type", "state"))


class End(_Message):
    """No more audio follows."""

    type: Literal["end"] = "end"


Progress = Started | JobFragment | JobInterrupted
LiveCommand = AudioChunk | Interrupt | Update | End
AnyRequest = AnimateRequest | LiveRequest | AvatarRequest | VerifyRequest
AnyEvent = Queued | Progress | Ending
AnyCommand = Ack | LiveCommand
_INDEXED = struct.Struct(">QII")
_REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="kind")])
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="type")])
_COMMAND: TypeAdapter[AnyCommand] = TypeAdapter(Annotated[AnyCommand, Field(discriminator="type")])


def pack_request(request: AnyRequest) -> bytes:
    """Serialise a request as JSON."""
    return request.model_dump_json().encode()


def unpack_request(text: bytes) -> AnyRequest:
    """The inverse of `pack_request`."""
    return _REQUEST.validate_json(text)


def pack_event(event: AnyEvent) -> tuple[bytes, bytes]:
    """Serialise as JSON and the raw bytes beside it."""
    data = event.data if isinstance(event, Started | JobFragment) else b""
    if isinstance(event, JobFragment):
        event, data = event.model_copy(update={"pcm_bytes": len(event.pcm)}), data + event.pcm
    return event.model_dump_json().encode(), data


def unpack_event(text: bytes, data: bytes) -> AnyEvent:
    """The inverse of `pack_event`."""
    event = _EVENT.validate_json(text)
    if isinstance(event, JobFragment):
        end = len(data) - event.pcm_bytes
        return event.model_copy(update={"data": data[:end], "pcm": data[end:]})
    if isinstance(event, Started):
        return event.model_copy(update={"data": data})
    return event


def video_file(token: int) -> str:
    """The file of the video's fragments that the claim with this token made.

    Each claim has its own: a worker that was wrongly presumed dead must not write into another's.
    """
    return f"claim-{token}"


def pack_index(fragments: Iterable[tuple[str, int]]) -> bytes:
    """Entry and size of each fragment, in order, in 16 bytes each.

    An entry is that of the job's stream, or ``byte-number`` in file ``number`` (`video_file`).
    """
    return b"".join(
        _INDEXED.pack(*(int(number) for number in entry.split("-")), size)
        for entry, size in fragments
    )


def unpack_index(data: bytes) -> list[tuple[str, int]]:
    """The inverse of `pack_index`."""
    return [(f"{ms}-{number}", size) for ms, number, size in _INDEXED.iter_unpack(data)]


def pack_command(command: AnyCommand) -> tuple[bytes, bytes]:
    """Serialise as JSON and the raw bytes beside it."""
    data = command.data if isinstance(command, AudioChunk) else b""
    return command.model_dump_json().encode(), data


def unpack_command(text: bytes, data: bytes) -> AnyCommand:
    """The inverse of `pack_command`."""
    command = _COMMAND.validate_json(text)
    if isinstance(command, AudioChunk):
        return command.model_copy(update={"data": data})
    return command

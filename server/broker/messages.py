"""What crosses between API and workers: requests, events, commands and signs of life, all typed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from server.api.protocol import AnimationOptions, AvatarView, ModelView


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Beat(_Message):
    """What a worker says of itself: what it has loaded, how many live sessions it can hold and
    does hold, and whether they need all of its cores. ``host`` says whose those are."""

    models: list[ModelView]
    live_places: int
    live_running: int = 0
    busy: bool = False
    host: str = ""


class _Request(_Message):
    """``trace`` is what `server.traces.span` goes on from. ``reader`` is the API process that alone
    can read what is made (`server.broker.liveness.reading`); empty: it is kept for anybody.
    ``owner`` is the client whose job and avatar it is; empty: everybody's."""

    trace: dict[str, str] = Field(default_factory=dict)
    reader: str = ""
    owner: str = ""


class AnimateRequest(_Request):
    """Make one video. ``keep``: hold it for later readers, at no one reader's pace."""

    kind: Literal["animate"] = "animate"
    options: AnimationOptions
    model: str
    seed: int
    avatar_id: str | None = None
    keep: bool = False


class LiveRequest(_Request):
    """Hold a live session: sound comes as `AudioChunk` while the video goes out."""

    kind: Literal["live"] = "live"
    options: AnimationOptions
    model: str
    seed: int
    sample_rate: int
    idle: bool
    avatar_id: str | None = None
    keep: Literal[False] = False


class AvatarRequest(_Request):
    """Prepare a portrait and keep it."""

    kind: Literal["avatar"] = "avatar"
    model: str
    avatar_id: str
    keep: Literal[False] = False


class Queued(_Message):
    """The first event of every job."""

    type: Literal["queued"] = "queued"


class Started(_Message):
    """The input is good and a video will come; ``data`` is its init segment."""

    type: Literal["started"] = "started"
    seed: int
    width: int
    height: int
    fps: int
    codecs: str
    total_s: float | None
    data: bytes = Field(exclude=True, default=b"")


class Fragment(_Message):
    """One ``moof`` + ``mdat``; the last may hold sound alone (``frames`` 0).

    ``heard`` is of a live session: the bytes of its `AudioChunk` that wait no more.
    """

    type: Literal["fragment"] = "fragment"
    index: int
    first_frame: int
    frames: int
    start_s: float
    duration_s: float
    speech: bool = True
    heard: int = 0
    data: bytes = Field(exclude=True, default=b"")


class Interrupted(_Message):
    """What was said before `Interrupt` ended here; ``heard`` as in `Fragment`."""

    type: Literal["interrupted"] = "interrupted"
    at_s: float
    heard: int


class AvatarMade(_Message):
    """The end of an avatar job."""

    type: Literal["avatar_made"] = "avatar_made"
    avatar: AvatarView


class Done(_Message):
    """The end of a good video."""

    type: Literal["done"] = "done"
    frames: int
    duration_s: float


class Failed(_Message):
    """The end of a job that could not be done; ``code`` is of `server.errors.KINDS`."""

    type: Literal["failed"] = "failed"
    code: str
    detail: str


class Cancelled(_Message):
    """The end of a job that nobody wants any more."""

    type: Literal["cancelled"] = "cancelled"


Ending = AvatarMade | Done | Failed | Cancelled


class Read(_Message):
    """Back-pressure: the reader has passed on every fragment up to ``index``."""

    type: Literal["read"] = "read"
    index: int


class AudioChunk(_Message):
    """More PCM of a live session, in any chunking: ``data`` is s16le mono."""

    type: Literal["sound"] = "sound"
    data: bytes = Field(exclude=True, default=b"")


class Interrupt(_Message):
    """Drop the sound that was sent before this."""

    type: Literal["interrupt"] = "interrupt"


class Update(_Message):
    """From the next window on; ``None`` leaves a setting as it is."""

    type: Literal["update"] = "update"
    steps: int | None = None
    audio_cfg: float | None = None
    reference_cfg: float | None = None


class End(_Message):
    """No more sound will come."""

    type: Literal["end"] = "end"


Progress = Started | Fragment | Interrupted
LiveCommand = AudioChunk | Interrupt | Update | End
AnyRequest = AnimateRequest | LiveRequest | AvatarRequest
AnyEvent = Queued | Progress | Ending
AnyCommand = Read | LiveCommand
_REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="kind")])
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="type")])
_COMMAND: TypeAdapter[AnyCommand] = TypeAdapter(Annotated[AnyCommand, Field(discriminator="type")])


def pack_request(request: AnyRequest) -> bytes:
    return request.model_dump_json().encode()


def unpack_request(text: bytes) -> AnyRequest:
    """The inverse of `pack_request`."""
    return _REQUEST.validate_json(text)


def pack_event(event: AnyEvent) -> tuple[bytes, bytes]:
    """JSON, and the raw bytes that go beside it."""
    data = event.data if isinstance(event, Started | Fragment) else b""
    return event.model_dump_json().encode(), data


def unpack_event(text: bytes, data: bytes) -> AnyEvent:
    """The inverse of `pack_event`."""
    event = _EVENT.validate_json(text)
    if isinstance(event, Started | Fragment):
        return event.model_copy(update={"data": data})
    return event


def pack_command(command: AnyCommand) -> tuple[bytes, bytes]:
    """JSON, and the raw bytes that go beside it."""
    data = command.data if isinstance(command, AudioChunk) else b""
    return command.model_dump_json().encode(), data


def unpack_command(text: bytes, data: bytes) -> AnyCommand:
    """The inverse of `pack_command`."""
    command = _COMMAND.validate_json(text)
    if isinstance(command, AudioChunk):
        return command.model_copy(update={"data": data})
    return command

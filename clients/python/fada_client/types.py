"""Answers and events of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Avatar:
    """A prepared portrait. ``face_box`` is x0, y0, x1, y1 in pixels of its picture."""

    avatar_id: str
    width: int
    height: int
    face_box: tuple[float, float, float, float]
    face_confidence: float


@dataclass(frozen=True)
class Model:
    """A loaded student; ``nfe_per_window``: network evaluations for its own ``steps``."""

    name: str
    latent_space: str
    steps: int
    nfe_per_window: int
    fps: int
    size: int
    licence: str
    audio_cfg: float
    reference_cfg: float


@dataclass(frozen=True)
class Job:
    """``progress`` is 0 to 1; ``error`` is the problem document of a failed job.

    ``warnings`` name what was repaired in the sound.
    """

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: float
    frames: int
    duration_s: float
    error: Mapping[str, Any] | None
    warnings: Sequence[str] = ()
    output: Literal["video", "motion"] = "video"


@dataclass(frozen=True)
class Ready:
    """A live session has started. ``mime`` is for a MediaSource buffer.

    With ``output="motion"`` there is no picture: ``width`` and ``height`` are 0, and ``actions``
    and ``pose`` name the numbers of a frame. ``token`` resumes the session.
    """

    session_id: str
    seed: int
    mime: str
    fps: int
    width: int
    height: int
    actions: Sequence[str] = ()
    pose: Sequence[str] = ()
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class InitSegment:
    """``ftyp`` and ``moov``: what a player needs before the first fragment."""

    data: bytes


@dataclass(frozen=True)
class Fragment:
    """One ``moof`` + ``mdat``. ``kind``: whether the avatar speaks or rests."""

    index: int
    start_s: float
    duration_s: float
    kind: Literal["speech", "idle"]
    data: bytes


@dataclass(frozen=True)
class MotionFrame:
    """A face ``t`` seconds after the start, by name: ARKit's 52 ``actions`` (0 to 1), and the
    head's ``pose``, ``yaw``, ``pitch``, ``roll`` in radians and ``x``, ``y``, ``z`` in distances
    between the outer eye corners."""

    t: float
    actions: Mapping[str, float]
    pose: Mapping[str, float]


@dataclass(frozen=True)
class Motion:
    """In a `Fragment`'s place with ``output="motion"``."""

    index: int
    start_s: float
    duration_s: float
    kind: Literal["speech", "idle"]
    frames: Sequence[MotionFrame]


@dataclass(frozen=True)
class Interrupted:
    """Sound from before the interrupt ends here."""

    at_s: float


@dataclass(frozen=True)
class Done:
    """The end of a session's video."""

    frames: int
    duration_s: float


Event = Ready | InitSegment | Fragment | Motion | Interrupted | Done


def known(kind: type[T], document: Mapping[str, Any]) -> T:
    """``kind`` from its own fields of ``document``; a newer service may send more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in document.items() if name in names})


def avatar_of(document: Mapping[str, Any]) -> Avatar:
    face = document["face"]
    return Avatar(
        document["avatar_id"],
        document["width"],
        document["height"],
        tuple(face["box"]),
        face["confidence"],
    )

"""The options of an animation and the JSON documents of the REST API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import ServiceError


class AnimationOptions(BaseModel):
    """``None`` leaves the choice to the student (``steps``, guidance) or to chance (``seed``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(None, ge=1, le=50, description="sampler steps")
    audio_cfg: float | None = Field(None, ge=0, le=10, description="audio guidance scale")
    reference_cfg: float | None = Field(None, ge=0, le=10, description="reference guidance scale")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="same seed, same video")
    size: int = Field(
        512, ge=128, le=1024, multiple_of=2, description="long side of the output, pixels"
    )
    framing: Literal["portrait", "full"] = Field(
        "portrait", description="square crop around the head, or the whole picture"
    )
    model: str | None = Field(None, max_length=100, description="which student answers")


class LiveStart(BaseModel):
    """What `start` holds on the WebSocket beside the options; ``portrait`` is base64."""

    model_config = ConfigDict(frozen=True)

    options: AnimationOptions
    avatar_id: str | None = None
    portrait: str | None = None
    sample_rate: int = Field(16_000, ge=8_000, le=48_000, description="of the PCM to come")
    idle: bool = False


ALLOWED = {
    "steps": "an integer from 1 to 50",
    "audio_cfg": "a number from 0 to 10",
    "reference_cfg": "a number from 0 to 10",
    "seed": "an integer from 0 to 9223372036854775807",
    "size": "an even integer from 128 to 1024",
    "framing": "portrait or full",
    "model": "a name from GET /models",
}


def parse_options(fields: Mapping[str, object]) -> AnimationOptions:
    """Raises `ServiceError` ``invalid_option`` naming the first wrong field and what it allows."""
    for name in fields:
        if name not in ALLOWED:
            raise ServiceError(
                "invalid_option", f"{name!r} is no option; allowed are {', '.join(ALLOWED)}"
            )
    try:
        return AnimationOptions.model_validate(dict(fields))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise ServiceError(
            "invalid_option", f"{name} is {str(fields[name])[:100]!r}; it must be {ALLOWED[name]}"
        ) from error


class ModelView(BaseModel):
    """One loaded student, as `GET /models` lists it."""

    name: str
    latent_space: str
    steps: int
    nfe_per_window: int
    fps: int
    size: int
    licence: str
    audio_cfg: float
    reference_cfg: float


class ModelList(BaseModel):
    """All that some live worker has loaded; ``default`` answers when a request names none."""

    models: list[ModelView]
    default: str | None


class FaceView(BaseModel):
    """``box`` is x0, y0, x1, y1 in pixels of the picture."""

    box: tuple[float, float, float, float]
    confidence: float


class AvatarView(BaseModel):
    """A prepared portrait; ``width`` and ``height`` are those of its picture, in pixels."""

    avatar_id: str
    width: int
    height: int
    face: FaceView


class ProblemView(BaseModel):
    """RFC 9457, with a stable ``code``."""

    type: str
    title: str
    status: int
    detail: str
    code: str


JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]


class JobView(BaseModel):
    """``progress`` is 0 to 1 of the audio when its length is known, else 0 until done."""

    id: str
    status: JobStatus
    progress: float
    frames: int
    duration_s: float
    error: ProblemView | None

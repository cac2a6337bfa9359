"""The options of an animation and the JSON documents of the REST API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import ServiceError

# IPTC's term for what this service makes, as in the videos themselves (`media.marks`).
AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CONTENT_SOURCE = {"X-Content-Source": AI_GENERATED}


def location(what: str) -> dict[str, object]:
    """The header ``Location`` of an answer, for OpenAPI."""
    return {"description": f"path of {what}", "required": True, "schema": {"type": "string"}}


FaceState = Literal["listening", "thinking", "idle"]
Emotion = Literal["neutral", "happy", "sad", "angry", "surprised", "afraid", "disgusted"]


class AnimationOptions(BaseModel):
    """``None`` means the default (``steps``, guidance, ``model``) or a random ``seed``."""

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
    background: str | None = Field(
        None,
        pattern="^#[0-9a-fA-F]{6}$",
        description="colour behind the person, as #00ff00; none: the picture's own background",
    )
    model: str | None = Field(None, max_length=100, description="model to use")
    head_motion: float = Field(
        1.0, ge=0, le=2, description="how far the head moves; 0 holds it as in the portrait"
    )
    expressiveness: float = Field(
        1.0, ge=0, le=2, description="how far brows, cheeks and smile act; 0 is a calm newsreader"
    )
    gaze: Literal["natural", "camera"] = Field(
        "natural", description="whether the eyes wander a little or hold the viewer's"
    )
    blink_rate: float = Field(1.0, ge=0, le=3, description="times the natural rate of blinks")
    emotion: Emotion = Field("neutral", description="what colours the face")
    emotion_strength: float = Field(0.6, ge=0, le=1, description="how strongly it does")
    output: Literal["video", "motion"] = Field(
        "video", description="what is made: a video, or ARKit actions and head pose"
    )


class LiveStart(BaseModel):
    """The `start` message of the WebSocket beside the options; ``portrait`` is base64."""

    model_config = ConfigDict(frozen=True)

    options: AnimationOptions
    avatar_id: str | None = None
    portrait: str | None = None
    sample_rate: int = Field(16_000, ge=8_000, le=48_000, description="of the PCM, Hz")
    idle: bool = False


ALLOWED = {
    "steps": "an integer from 1 to 50",
    "audio_cfg": "a number from 0 to 10",
    "reference_cfg": "a number from 0 to 10",
    "seed": "an integer from 0 to 9223372036854775807",
    "size": "an even integer from 128 to 1024",
    "framing": "portrait or full",
    "background": "a colour such as #00ff00",
    "model": "a name from GET /models",
    "head_motion": "a number from 0 to 2",
    "expressiveness": "a number from 0 to 2",
    "gaze": "natural or camera",
    "blink_rate": "a number from 0 to 3",
    "emotion": "neutral, happy, sad, angry, surprised, afraid or disgusted",
    "emotion_strength": "a number from 0 to 1",
    "output": "video or motion",
}


def parse_options(fields: Mapping[str, object]) -> AnimationOptions:
    """Raises `ServiceError` ``invalid_option``, naming the first wrong option and its range."""
    for name in fields:
        if name not in ALLOWED:
            raise ServiceError(
                "invalid_option", f"option = {name!r}, expected one of {', '.join(ALLOWED)}"
            )
    try:
        return AnimationOptions.model_validate(dict(fields))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise ServiceError(
            "invalid_option", f"{name} = {str(fields[name])[:100]!r}, expected {ALLOWED[name]}"
        ) from error


def parse_state(state: object) -> FaceState:
    """Raises `ServiceError` ``invalid_option`` for anything but a state of a live session."""
    if state not in get_args(FaceState):
        raise ServiceError(
            "invalid_option",
            f"state = {str(state)[:100]!r}, expected {', '.join(get_args(FaceState))}",
        )
    return cast(FaceState, state)


def unknown_model(name: str, names: Iterable[str]) -> ServiceError:
    """The error of a request for a model that is not among the loaded ``names``."""
    return ServiceError("invalid_option", f"model = {name!r}, expected one of {', '.join(names)}")


class ModelView(BaseModel):
    """One loaded model, as `GET /models` lists it."""

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
    """The models that live workers have loaded; ``default`` serves requests that name none."""

    models: list[ModelView]
    default: str | None


class FaceView(BaseModel):
    """A detected face; ``box`` is x0, y0, x1, y1 in pixels of the picture."""

    box: tuple[float, float, float, float]
    confidence: float


class AvatarView(BaseModel):
    """A prepared portrait; ``width`` and ``height`` of its picture are in pixels."""

    avatar_id: str
    width: int
    height: int
    face: FaceView


class MarkView(BaseModel):
    """One mark of a video, as `media.verify` reads it."""

    name: str
    where: str
    source_type: str
    tool: str
    date: str
    status: str
    detail: str


class MarksView(BaseModel):
    """All marks of a video, and what they come to."""

    verdict: str
    made_by_ai: bool
    marks: list[MarkView]


class ProblemView(BaseModel):
    """A problem document (RFC 9457) with a stable ``code``."""

    type: str
    title: str
    status: int
    detail: str
    code: str


JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]


class JobView(BaseModel):
    """A job's status; ``progress`` is 0 to 1, or 0 until done if the length is unknown.

    ``warnings`` name what was repaired in the sound. ``output`` is the option of that name.
    """

    id: str
    status: JobStatus
    output: Literal["video", "motion"]
    progress: float
    frames: int
    duration_s: float
    warnings: list[str]
    error: ProblemView | None

"""The values that pass between model, engines and server: small, frozen, and free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
DEFAULT_SIZE = 512  # pixels, the video's long side
MAX_TEMPERATURE = 2.0  # noise twice as loud is unlike anything the network was trained on
DEFAULT_LICENCE = "as its training data allow"

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Colour = tuple[int, int, int]  # RGB, 0..255
ScaleLimits = tuple[tuple[float, float], tuple[float, float]]  # (low, high) of audio, of reference


def pack(arrays: dict[str, NDArray[np.generic]], values: dict[str, object]) -> bytes:
    """One self-describing blob: ``arrays`` as safetensors, ``values`` as JSON beside them."""
    text = np.frombuffer(json.dumps(values, sort_keys=True).encode(), dtype=np.uint8)
    return save({**{k: np.ascontiguousarray(v) for k, v in arrays.items()}, "__values__": text})


def unpack(blob: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, object]]:
    """The inverse of `pack`. Raises ``ValueError`` for bytes that `pack` did not make."""
    try:
        arrays = load(blob)
        values = json.loads(arrays.pop("__values__").tobytes())
    except Exception as error:
        raise ValueError(f"not a packed blob ({len(blob)} bytes): {error}") from error
    return arrays, values


@dataclass(frozen=True)
class Reference:
    """A portrait, prepared once per avatar and reused by every session.

    ``features`` (D_ref,) condition the network; ``arrays`` are what the latent space's decoder
    draws from (picture, landmarks, ...). ``face_box`` is x0, y0, x1, y1 in pixels of the
    ``width`` x ``height`` picture.
    """

    latent_space: str
    width: int
    height: int
    face_box: tuple[float, float, float, float]
    face_confidence: float
    features: Floats
    arrays: dict[str, NDArray[np.generic]]

    def expect(self, latent_space: str) -> None:
        """Raises ``ValueError`` when the reference was prepared for another latent space."""
        if self.latent_space != latent_space:
            raise ValueError(
                f"the portrait was prepared for the {self.latent_space!r} latent space, "
                f"expected {latent_space!r}"
            )

    def to_bytes(self) -> bytes:
        values: dict[str, object] = {
            "latent_space": self.latent_space,
            "width": self.width,
            "height": self.height,
            "face_box": list(self.face_box),
            "face_confidence": self.face_confidence,
        }
        return pack({**self.arrays, "__features__": self.features}, values)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Reference:
        """Raises ``ValueError`` when ``blob`` is not a packed reference."""
        arrays, values = unpack(blob)
        features = arrays.pop("__features__").astype(np.float32)
        values["face_box"] = tuple(values["face_box"])  # type: ignore[arg-type]
        return cls(features=features, arrays=arrays, **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Guidance:
    """The two live guidance scales of multi-CFG (FADA, section 3.3): audio and reference."""

    audio: float
    reference: float

    @property
    def branches(self) -> int:
        """How many of guidance's three branches have weight, see `MultiCFGDenoiser`."""
        return sum(w != 0 for w in (1 - self.reference, self.reference - self.audio, self.audio))


@dataclass(frozen=True)
class Behaviour:
    """How a face acts beside its speech; a session may change it at any window.

    ``head_motion`` and ``expressiveness`` (0 to 2) scale the head, and brows, cheeks and smile.
    ``gaze``: the eyes wander a little (``natural``) or hold the viewer's (``camera``).
    ``blink_rate`` (0 to 3) times the natural rate. ``emotion``: ``neutral`` or one of
    `model.motion.emotions.EMOTIONS`, as strong as ``emotion_strength`` (0 to 1). ``state``, while
    nothing is said: ``listening`` (attention and nods), ``thinking`` (a look aside) or ``idle``.
    """

    head_motion: float = 1.0
    expressiveness: float = 1.0
    gaze: str = "natural"
    blink_rate: float = 1.0
    emotion: str = "neutral"
    emotion_strength: float = 0.6
    state: str = "idle"


NATURAL = Behaviour()


@dataclass(frozen=True)
class Window:
    """One input of the model: the speech of some new frames, with past and look-ahead.

    ``features`` (float32) has one row per video frame (`model.audio.frontend.AudioWindowSpec`).
    ``frames`` is the number of new frames that are real: the last window of a speech is padded
    with silence.
    """

    index: int
    features: Floats
    frames: int


@dataclass(frozen=True)
class SessionState:
    """All that one session needs to go on anywhere: in and out of every step, never mutated.

    ``prefix`` (P, D) holds the last P clean latents, flat, whatever shape the network gives them.
    ``carry`` (C,) is what the last frame has beside its latent, see `Student.perform`. The noise of
    a window is seeded by (``seed``, ``window_index``), so a replayed window gives the same latents.
    """

    seed: int
    prefix: Floats
    window_index: int = 0
    frames_done: int = 0
    carry: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    def to_bytes(self) -> bytes:
        values: dict[str, object] = {
            "seed": self.seed,
            "window_index": self.window_index,
            "frames_done": self.frames_done,
        }
        return pack({"prefix": self.prefix, "carry": self.carry}, values)

    @classmethod
    def from_bytes(cls, blob: bytes) -> SessionState:
        """Raises ``ValueError`` when ``blob`` is not a packed state."""
        arrays, values = unpack(blob)
        known = {
            name: arrays[name].astype(np.float32) for name in ("prefix", "carry") if name in arrays
        }
        return cls(**known, **values)  # type: ignore[arg-type]

    def after(self, latents: Floats, frames: int) -> SessionState:
        """The state after ``frames`` of the window's ``latents`` (hop, D + C)."""
        dim = self.prefix.shape[1]
        joined = np.concatenate([self.prefix, latents[:frames, :dim]])
        return replace(
            self,
            prefix=joined[len(joined) - len(self.prefix) :],
            carry=latents[frames - 1, dim:],
            window_index=self.window_index + 1,
            frames_done=self.frames_done + frames,
        )


@dataclass(frozen=True)
class WindowTask:
    """One session's window in a batch."""

    window: Window
    state: SessionState
    reference: Reference
    guidance: Guidance
    steps: int
    behaviour: Behaviour = NATURAL


@dataclass(frozen=True)
class ModelMetadata:
    """What a model's file states beside its parameters.

    ``steps`` and ``guidance`` are defaults. ``limits`` are the scales that a student with CFG
    tokens was distilled in; ``None``: three branches are mixed by the scales, so a step costs an
    evaluation for each that has weight. ``temperature`` scales a motion student's initial noise: of
    the eyes, and of brows and head.
    """

    steps: int
    guidance: Guidance
    limits: ScaleLimits | None = None
    licence: str = DEFAULT_LICENCE
    temperature: tuple[float, float] = (1.0, 1.0)

    @property
    def nfe_per_window(self) -> int:
        """Network evaluations per window, with the default steps and scales."""
        return self.steps * (self.guidance.branches if self.limits is None else 1)

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], *, guided: bool, licence: str | None = None
    ) -> ModelMetadata:
        """``guided``: the network takes CFG tokens. ``licence`` overrides the file's.

        Raises ``ValueError`` naming a value that is missing or out of range.
        """
        needed = ("steps", "guidance", "limits") if guided else ("steps", "guidance")
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(
                f"the model's metadata lack {', '.join(missing)}; they have {sorted(values)}"
            )
        limits: ScaleLimits | None = None
        if guided:
            audio, reference = values["limits"]
            limits = (audio[0], audio[1]), (reference[0], reference[1])
        return cls(
            steps=int(values["steps"]),
            guidance=Guidance(*values["guidance"]),
            limits=limits,
            licence=licence or str(values.get("licence", DEFAULT_LICENCE)),
            temperature=_temperature(values.get("temperature", 1.0)),
        )


def _temperature(value: object) -> tuple[float, float]:
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    numbers = [x for x in pair if isinstance(x, (int, float)) and 0 <= x <= MAX_TEMPERATURE]
    if len(pair) != 2 or len(numbers) != 2:
        raise ValueError(
            f"temperature is {value}, expected 0 to {MAX_TEMPERATURE}, "
            "one number or two (eyes; brows and head)"
        )
    return numbers[0], numbers[1]

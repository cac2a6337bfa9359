"""What a window is conditioned on, and what a session carries from one window to the next."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

Floats = NDArray[np.float32]


def pack(arrays: dict[str, NDArray[np.generic]], facts: dict[str, object]) -> bytes:
    """One self-describing blob: ``arrays`` as safetensors, ``facts`` as JSON beside them."""
    text = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), dtype=np.uint8)
    return save({**{k: np.ascontiguousarray(v) for k, v in arrays.items()}, "__facts__": text})


def unpack(blob: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, object]]:
    """The inverse of `pack`. Raises ``ValueError`` for bytes that `pack` did not make."""
    try:
        arrays = load(blob)
        facts = json.loads(arrays.pop("__facts__").tobytes())
    except Exception as error:
        raise ValueError(f"not a packed blob ({len(blob)} bytes): {error}") from error
    return arrays, facts


@dataclass(frozen=True)
class Reference:
    """What is kept of a portrait: prepared once an avatar, then reused by every session.

    ``features`` (D_ref,) is what the network is conditioned on; ``arrays`` is what the latent
    space's decoder needs to draw (picture, landmarks, ...). ``face_box`` is x0, y0, x1, y1 in
    pixels of the ``width`` x ``height`` picture.
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
        facts: dict[str, object] = {
            "latent_space": self.latent_space,
            "width": self.width,
            "height": self.height,
            "face_box": list(self.face_box),
            "face_confidence": self.face_confidence,
        }
        return pack({**self.arrays, "__features__": self.features}, facts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Reference:
        """Raises ``ValueError`` when ``blob`` is not a packed reference."""
        arrays, facts = unpack(blob)
        features = arrays.pop("__features__").astype(np.float32)
        facts["face_box"] = tuple(facts["face_box"])  # type: ignore[arg-type]
        return cls(features=features, arrays=arrays, **facts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Guidance:
    """The two live guidance scales of multi-CFG (FADA, section 3.3): audio and reference."""

    audio: float
    reference: float


@dataclass(frozen=True)
class Window:
    """One input of the model: the sound of some new frames with its past and look-ahead.

    ``features`` float32 has one row a video frame (`model.audio.frontend.AudioWindowSpec`);
    ``frames`` says how many of the new ones are real: the last window of a speech is padded with
    silence.
    """

    index: int
    features: Floats
    frames: int


@dataclass(frozen=True)
class SessionState:
    """All that one session needs to go on anywhere: in and out of every step, never mutated.

    ``prefix`` is (P, D) clean latents of the last frames made, as many as the network is told, each
    flat, whatever shape the network gives it. The noise of a window is seeded by (``seed``,
    ``window_index``), so a replayed window gives the same latents.
    """

    seed: int
    prefix: Floats
    window_index: int = 0
    frames_done: int = 0

    def to_bytes(self) -> bytes:
        facts: dict[str, object] = {
            "seed": self.seed,
            "window_index": self.window_index,
            "frames_done": self.frames_done,
        }
        return pack({"prefix": self.prefix}, facts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> SessionState:
        """Raises ``ValueError`` when ``blob`` is not a packed state."""
        arrays, facts = unpack(blob)
        return cls(prefix=arrays["prefix"].astype(np.float32), **facts)  # type: ignore[arg-type]

    def after(self, latents: Floats, frames: int) -> SessionState:
        """The state once ``frames`` of the window's ``latents`` (hop, D) were made."""
        joined = np.concatenate([self.prefix, latents[:frames]])
        return replace(
            self,
            prefix=joined[len(joined) - len(self.prefix) :],
            window_index=self.window_index + 1,
            frames_done=self.frames_done + frames,
        )

"""How lively a face is, and how well its head and brows fit the prosody of its sound.

Measured on absolute coefficients and head pose, so on generated motion and on tracked videos alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTIONS
from model.types import FPS, Floats
from training.evaluation.prosody import Prosody, smoothed

_SHUT, _REOPENED = 0.45, 0.25
PHRASE_END = (-0.3, 0.7)  # seconds around the end of a phrase in which a blink belongs to it
_LAGS = range(-2, 8, 2)  # frames by which motion may follow sound
_RIDGE = 0.3
_DRAWS = 9999
_JITTER = 1.5  # frames
_QUIET_DB = 40.0  # below a speech's loudest frame, all is silence


@dataclass(frozen=True)
class FaceMotion:
    """(T, 52) absolute ``coefficients``, and (T, 3) ``rotation`` of the head: a rotation vector in
    radians, x right, y up, z to the viewer, so pitch (down is positive), yaw, roll."""

    coefficients: Floats
    rotation: Floats

    def mean_of(self, name: str) -> Floats:
        """(T,) the action ``name``, or the mean of its left and right."""
        at = [i for i, action in enumerate(ACTIONS) if action in (name, *_sides(name))]
        return np.asarray(self.coefficients[:, at].mean(1))

    def gaze(self) -> tuple[Floats, Floats]:
        """(T,) each: to the subject's left, and up."""
        left, right = (
            {way: self.mean_of(f"eyeLook{way}{side}") for way in ("In", "Out", "Up", "Down")}
            for side in ("Left", "Right")
        )
        across = (left["Out"] - left["In"] + right["In"] - right["Out"]) / 2
        up = (left["Up"] - left["Down"] + right["Up"] - right["Down"]) / 2
        return np.asarray(across, np.float32), np.asarray(up, np.float32)


def _sides(name: str) -> tuple[str, str]:
    return f"{name}Left", f"{name}Right"


def activity(face: FaceMotion) -> dict[str, float]:
    """Standard deviations over a clip, and the rest of the columns that need no sound."""
    degrees = np.degrees(face.rotation)
    spread = degrees.std(0)
    # A tracker's jitter of 0.1 degrees a frame alone would be 3 degrees a second.
    steps = np.diff(smoothed(degrees, _JITTER), axis=0)
    speed = float(np.median(np.linalg.norm(steps, axis=1)) * FPS)
    jaw = face.mean_of("jawOpen")
    across, up = face.gaze()
    return {
        "yaw °": float(spread[1]),
        "pitch °": float(spread[0]),
        "roll °": float(spread[2]),
        "browInnerUp": float(face.mean_of("browInnerUp").std()),
        "browOuterUp": float(face.mean_of("browOuterUp").std()),
        "smile": float(face.mean_of("mouthSmile").std()),
        "cheekSquint": float(face.mean_of("cheekSquint").std()),
        "gaze x": float(across.std()),
        "gaze y": float(up.std()),
        "jaw p95−p5": float(np.percentile(jaw, 95) - np.percentile(jaw, 5)),
        "head °/s": speed,
        "speed / spread, 1/s": speed / float(np.linalg.norm(spread) + 1e-6),
        "blinks/min": 60 * len(blink_onsets(face)) * FPS / max(1, len(jaw)),
    }


def blink_onsets(face: FaceMotion) -> NDArray[np.intp]:
    """Frames in which both lids close: their mean rises over 0.45 after it was below 0.25."""
    found, shut = [], True
    for frame, value in enumerate(face.mean_of("eyeBlink")):
        if not shut and value > _SHUT:
            shut = True
            found.append(frame)
        elif shut and value < _REOPENED:
            shut = False
    return np.array(found, np.intp)


def blinks_at_phrase_ends(
    faces: Sequence[FaceMotion], sounds: Sequence[Prosody]
) -> dict[str, float]:
    """The share of blinks near a phrase's end, and that of a blink at any time (by chance)."""
    near, chance = [], []
    for face, sound in zip(faces, sounds, strict=True):
        frames = min(len(face.rotation), len(sound.loudness))
        at = np.zeros(frames, bool)
        for end in sound.phrase_ends:
            at[max(0, end + round(PHRASE_END[0] * FPS)) : end + round(PHRASE_END[1] * FPS)] = True
        near.append(at[[b for b in blink_onsets(face) if b < frames]])
        chance.append(at)
    shares = np.concatenate(near), np.concatenate(chance)
    return {
        "blinks at phrase ends": float(shares[0].mean()) if len(shares[0]) else 0.0,
        "by chance": float(shares[1].mean()),
    }


def drift(face: FaceMotion) -> dict[str, float]:
    """How far the mean of a minute lies from the whole's: degrees, and the largest of any action's.

    A face that keeps to its place stays within a fraction of its spread.
    """
    minute = 60 * FPS
    count = len(face.rotation) // minute
    parts = [slice(k * minute, (k + 1) * minute) for k in range(count)]
    turned = np.degrees(np.stack([face.rotation[p].mean(0) for p in parts]))
    slope = np.polyfit(np.arange(count), turned, 1)[0]
    return {
        "farthest minute °": float(np.abs(turned - turned.mean(0)).max()),
        "drift, ° in ten minutes": float(10 * np.abs(slope).max()),
    }


class ProsodyFit:
    """How well head and brows fit a sound: its accents, loudness and pitch, read from them.

    A ridge regression on lags of the band-passed motion, fitted to some speeches; judge it on
    others. ``score`` of a motion with its own sound beats that with another's if motion follows
    sound.
    """

    def __init__(self, faces: Sequence[FaceMotion], sounds: Sequence[Prosody]) -> None:
        pairs = [_common(_moving(f), _voice(s)) for f, s in zip(faces, sounds, strict=True)]
        x = np.concatenate([moving for moving, _ in pairs])
        y = np.concatenate([voice / (voice.std(0) + 1e-6) for _, voice in pairs])
        self._scale = x.std(0) + 1e-6
        x = x / self._scale
        gram = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1])
        self._weights = np.linalg.solve(gram, x.T @ y / len(x))

    def __call__(self, faces: Sequence[FaceMotion], sounds: Sequence[Prosody]) -> dict[str, float]:
        """Mean correlations, and the share of shuffles of the sounds that fit as well."""
        read = [_moving(face) / self._scale @ self._weights for face in faces]
        voice = [_voice(sound) for sound in sounds]
        table = np.array([[_correlations(*_common(r, h)) for h in voice] for r in read])
        own = np.einsum("iic->ic", table).mean(0)
        scores, count = table.mean(2), len(faces)
        random = np.random.default_rng(0)
        draws = [scores[np.arange(count), random.permutation(count)].mean() for _ in range(_DRAWS)]
        better = sum(draw >= np.trace(scores) / count for draw in draws)
        return {
            "accents r": float(own[0]),
            "loudness r": float(own[1]),
            "pitch r": float(own[2]),
            "own sound": float(np.trace(scores) / count),
            "shuffled": float(np.mean(draws)),
            "p": (1 + better) / (1 + _DRAWS),
        }


def _moving(face: FaceMotion) -> NDArray[np.float64]:
    """(T, D) head and brows, their speeds, band-passed, at several lags."""
    tracks = np.column_stack(
        [np.degrees(face.rotation), face.mean_of("browInnerUp"), face.mean_of("browDown")]
    )
    speed = np.linalg.norm(np.gradient(tracks[:, :3], axis=0), axis=1)
    moving = _band(np.column_stack([tracks, np.gradient(tracks, axis=0), speed]))
    return np.concatenate([np.roll(moving, -lag, axis=0) for lag in _LAGS], axis=1)


def _voice(sound: Prosody) -> NDArray[np.float64]:
    """(T, 3) accents, loudness and pitch, band-passed."""
    loud = np.maximum(sound.loudness, sound.loudness.max() - _QUIET_DB)
    return _band(np.stack([sound.accents, loud, sound.pitch], axis=1))


def _common(
    moving: NDArray[np.float64], voice: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The frames that both have, without those that a lag takes from the other end."""
    inner = slice(max(_LAGS), min(len(moving), len(voice)) - max(_LAGS))
    return moving[inner], voice[inner]


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r, column by column; 0 where nothing moves."""
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.asarray((a * b).sum(0) / (norms + 1e-9), np.float64)


def _band(tracks: NDArray[np.floating]) -> NDArray[np.float64]:
    """(T, D) without what is faster than syllables or slower than phrases."""
    return smoothed(tracks, 1.5) - smoothed(tracks, 20.0)

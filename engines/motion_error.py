"""How far the motion by an engine is from the motion by its network: the measure of its precision.

A single evaluation shows little: a student's own frames are its next prefix, guidance subtracts
nearly equal branches, and a blink at another time is a large error. So the motion of whole
sentences is compared, in closed loop.
"""

from __future__ import annotations

import numpy as np

from model.diffusion.denoiser import Forward
from model.models import motion_pipeline
from model.motion.checkpoint import MotionWeights
from model.motion.rollout import MotionOnly, roll_out
from model.portrait.blendshapes import REFERENCE_DIM
from model.types import SAMPLE_RATE, Floats

# A share of the motion's standard deviation. On a Xeon with AMX, bfloat16 is off by 0.013 with
# motion-fast and by 0.044 with motion-balanced; a different seed is 0.76 away.
MAX_MOTION_ERROR = 0.03
_SEEDS = (1, 2)
_SECONDS = 2.4


def motion_error(weights: MotionWeights, forward: Forward) -> float:
    """Root mean square difference between the motion by ``forward`` and by plain torch.

    As a share of the motion's standard deviation, over two sessions of a synthetic voice.
    """
    made, truth = _motion(weights, forward), _motion(weights, None)
    return float(np.sqrt(((made - truth) ** 2).mean()) / truth.std())


def _motion(weights: MotionWeights, forward: Forward | None) -> Floats:
    """(sessions, T, MOTION_DIM) by ``forward``; None: by plain torch."""
    engine = None if forward is None else lambda _: forward
    pipeline = motion_pipeline("compared", weights, MotionOnly(), engine=engine)
    sounds = [synthetic_voice(_SECONDS)] * len(_SEEDS)
    rest = [np.zeros(REFERENCE_DIM, np.float32)] * len(_SEEDS)
    known = pipeline.metadata
    motion = roll_out(
        pipeline,
        sounds,
        rest,
        seeds=list(_SEEDS),
        guidance=known.guidance,
        steps=known.steps,
        progress=False,
    )
    return np.stack(motion)


def synthetic_voice(seconds: float) -> Floats:
    """(N,) samples at 16 kHz of a speech-like sound, always the same.

    Syllables of gliding vowels at 3.5 Hz: harmonics of a pitch around 120 Hz, weighted by three
    formants (Fant 1960), with a pause at the end.
    """
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch_hz = 120 + 20 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE
    openness = 0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * t)
    formants = (  # centre and bandwidth (Hz), level
        (300 + 500 * openness, 80, 1.0),
        (2200 - 1000 * openness, 120, 0.5),
        (2700, 200, 0.25),
    )
    sound = np.zeros_like(t)
    for harmonic in range(1, 34):
        gain = sum(
            level / (1 + ((harmonic * pitch_hz - centre) / width) ** 2)
            for centre, width, level in formants
        )
        sound += gain * np.sin(harmonic * phase)
    sound *= np.sin(np.pi * 3.5 * t) ** 2 * (t < seconds - 0.5)
    return (0.2 * sound / np.abs(sound).max()).astype(np.float32)

"""Emotions as offsets of facial actions and of the head's posture.

Prototypes in action units: EMFACS (Ekman & Friesen 1983) and the consistent ones of Du, Tao &
Martinez 2014. Each is what the strongest expression adds to the coefficients; above 1 they
saturate, so that a strength of 0.6 is plain to see. None opens the lips, so that speech still
closes them: what parts them is left out, or countered by `mouthClose`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTIONS

EMOTIONS = "happy", "sad", "angry", "surprised", "afraid", "disgusted"

_ACTIONS: dict[str, dict[str, float]] = {
    # AU 6 + 12
    "happy": {"mouthSmile": 1.0, "cheekSquint": 0.8, "eyeSquint": 0.45, "mouthDimple": 0.25,
              "browInnerUp": 0.15, "browOuterUp": 0.15, "mouthClose": 0.05},
    # AU 1 + 4 + 15
    "sad": {"browInnerUp": 1.4, "browDown": 0.4, "mouthFrown": 1.4, "eyeSquint": 0.3,
            "mouthShrugLower": 0.15, "eyeLookDown": 0.15},
    # AU 4 + 5 + 7 + 23
    "angry": {"browDown": 1.7, "eyeSquint": 0.9, "noseSneer": 0.5, "mouthPress": 0.5,
              "mouthFrown": 0.8, "mouthClose": 0.08},
    # AU 1 + 2 + 5
    "surprised": {"browInnerUp": 1.5, "browOuterUp": 1.5, "eyeWide": 1.4},
    # AU 1 + 2 + 4 + 5 + 20
    "afraid": {"browInnerUp": 1.5, "browOuterUp": 0.3, "browDown": 0.5, "eyeWide": 1.4,
               "mouthStretch": 1.0, "mouthFrown": 0.6},
    # AU 9 + 10 + 4
    "disgusted": {"noseSneer": 1.3, "mouthUpperUp": 0.2, "browDown": 1.0, "eyeSquint": 0.7,
                  "cheekSquint": 0.6, "mouthFrown": 0.6, "mouthClose": 0.28},
}  # fmt: skip
# Degrees: pitch (down), yaw (to the subject's left), roll.
_POSTURES = {
    "happy": (-1.0, 0.0, 1.5),
    "sad": (5.0, 0.0, 2.0),
    "angry": (4.0, 0.0, 0.0),
    "surprised": (-3.0, 0.0, 0.0),
    "afraid": (-2.0, 3.0, 0.0),
    "disgusted": (-2.5, 4.0, 3.0),
}


def _row(weights: dict[str, float]) -> NDArray[np.float64]:
    sides = {name: name.removesuffix("Left").removesuffix("Right") for name in ACTIONS}
    return np.array([weights.get(sides[name], 0.0) for name in ACTIONS])


EMOTION_ACTIONS = np.stack([_row(_ACTIONS[name]) for name in EMOTIONS])  # (6, 52)
EMOTION_POSTURES = np.array([_POSTURES[name] for name in EMOTIONS])  # (6, 3)

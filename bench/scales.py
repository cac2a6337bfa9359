"""How far the mouth opens by ``audio_cfg``, and what ``reference_cfg`` makes of a face.

    python bench/scales.py SPEECH GRID [WEIGHTS]

Latents as a network gives them, at its own steps, for eight utterances of unseen voices, one seed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import load_weights
from model.motion.rollout import MotionOnly
from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, reference_features
from model.types import Floats, Guidance
from training.evaluation.evaluate import generate, held_out_set
from training.evaluation.metrics import JAW, gaps_of

AUDIO_SCALES = (1.0, 2.0, 4.0)
LOW, HIGH = 1.0, 4.0  # of the reference
UTTERANCES, REST, RESAMPLES = 8, 0.05, 500
MOUTH = [i for i, name in enumerate(ACTIONS) if name.startswith(("jaw", "mouth"))]
RESTS: dict[str, dict[str, float]] = {
    "common": {},
    "rests smiling": {
        "mouthSmileLeft": 0.5, "mouthSmileRight": 0.5,
        "cheekSquintLeft": 0.3, "cheekSquintRight": 0.3,
    },
    "rests with an open mouth": {
        "jawOpen": 0.3, "mouthLowerDownLeft": 0.3, "mouthLowerDownRight": 0.3,
    },
    "rests with raised brows": {
        "browInnerUp": 0.5, "browOuterUpLeft": 0.5, "browOuterUpRight": 0.5,
    },
}  # fmt: skip


def main() -> None:
    speech, grid = Path(sys.argv[1]), Path(sys.argv[2])
    path = Path(sys.argv[3]) if len(sys.argv) > 3 else WEIGHTS / "motion-fast.safetensors"
    tests = held_out_set(grid, speech, clips=6, voices=2 * UTTERANCES, part="report")
    pipeline = motion_pipeline("measured", load_weights(path), MotionOnly())
    known = pipeline.metadata
    faces = {name: resting(values) for name, values in RESTS.items()}
    faces["the speaker's own"] = tests.clips[0].features

    def make(face: Floats, guidance: Guidance) -> list[Floats]:
        chosen = [replace(u, features=face) for u in tests.voices[:UTTERANCES]]
        return generate(pipeline, chosen, 0, guidance=guidance, steps=known.steps)

    print("| audio_cfg | jawOpen, p95 − p5 | gap of the lips, p95 − p5 |\n| --- | --- | --- |")
    for scale in AUDIO_SCALES:
        made = make(faces["common"], Guidance(scale, known.guidance.reference))
        jaws = [reach(m[:, JAW]) for m in made]
        gaps = [reach(gap) for gap in gaps_of(made, tests.lip_gap)]
        print(f"| {scale:g} | {interval(jaws)} | {interval(gaps)} |")

    motions = {
        name: [make(face, Guidance(known.guidance.audio, scale)) for scale in (LOW, HIGH)]
        for name, face in faces.items()
    }
    spread = np.concatenate(motions["common"][0]).std(0)[MOUTH] + 1e-3
    print("\n| face | jawOpen at 1, 4 | shift 1→4 | from the common face at 1 | at 4 |")
    print("| --- | --- | --- | --- | --- |")
    for name, (low, high) in motions.items():
        jaw = ", ".join(f"{np.mean([reach(m[:, JAW]) for m in made]):.3f}" for made in (low, high))
        pairs = zip(low, high, strict=True)
        shift = np.mean([np.abs((b - a)[:, MOUTH] / spread).mean() for a, b in pairs])
        own = " | ".join(
            f"{from_common(made, common, spread):.3f}"
            for made, common in zip((low, high), motions["common"], strict=True)
        )
        print(f"| {name} | {jaw} | {shift:.3f} | {own} |")


def resting(values: dict[str, float]) -> Floats:
    """A common face's features whose rest is ``values`` and `REST` elsewhere."""
    rest = np.full(ACTION_COUNT, REST, np.float32)
    for name, value in values.items():
        rest[ACTIONS.index(name)] = value
    return reference_features(rest, None)


def from_common(made: list[Floats], common: list[Floats], spread: Floats) -> float:
    """How far the mouth's mean actions are from those of the common face, in spreads."""
    pairs = zip(made, common, strict=True)
    return float(np.mean([np.abs((a - b).mean(0)[MOUTH] / spread).mean() for a, b in pairs]))


def reach(values: Floats) -> float:
    """The 95th percentile less the 5th."""
    low, high = np.percentile(values, (5, 95))
    return float(high - low)


def interval(values: list[float]) -> str:
    """Mean and the 95 % interval of the mean over utterances."""
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return f"{np.mean(values):.3f} ({low:.3f}–{high:.3f})"


if __name__ == "__main__":
    main()

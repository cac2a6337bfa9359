"""Whether a face that speaks, turns and feels stays the same person's.

    python bench/identity.py --portraits P… --speech S [--strength 0.6]

Prints, for each emotion, the cosine of dlib's face embeddings between frames of a video and the
portrait at rest; beside it the same of every two portraits at rest. Needs ``dlib-bin`` and
``face_recognition_models`` beside the extra `serve` (`pip install --no-deps`; what is used of
them, embeddings and five landmarks, is in the public domain).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import dlib
import numpy as np
import soundfile
from numpy.typing import NDArray

import fada
from model.motion.emotions import EMOTIONS
from model.types import SAMPLE_RATE

EVERY = 10  # frames
STILL: dict[str, Any] = {"head_motion": 0, "expressiveness": 0, "blink_rate": 0}


class Embedder:
    """dlib's embedding (128,) of the largest face of a picture."""

    def __init__(self) -> None:
        spec = find_spec("face_recognition_models")
        if spec is None or spec.origin is None:
            raise SystemExit("bench/identity.py needs the package face_recognition_models")
        models = Path(spec.origin).parent / "models"
        self._detect = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._net = dlib.face_recognition_model_v1(
            str(models / "dlib_face_recognition_resnet_model_v1.dat")
        )

    def __call__(self, picture: NDArray[Any]) -> NDArray[np.float64] | None:
        """None where no face is detected."""
        picture = np.ascontiguousarray(picture)
        faces = sorted(self._detect(picture), key=lambda box: box.area())
        if not faces:
            return None
        landmarks = self._landmarks(picture, faces[-1])
        return np.array(self._net.compute_face_descriptor(picture, landmarks))

    def of_video(self, pictures: Iterable[NDArray[Any]]) -> list[NDArray[np.float64]]:
        """Of every tenth frame that shows a face."""
        found = (self(picture) for i, picture in enumerate(pictures) if i % EVERY == 0)
        return [one for one in found if one is not None]


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) of a (n, 128) and b, which has the same shape or is one embedding."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(axis=-1) / lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, nargs="+", required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--strength", type=float, default=0.6)
    args = parser.parse_args()
    embed = Embedder()
    rests, videos = [], []
    with fada.load() as client:

        def embedded(portrait: Path, sound: Any, **options: Any) -> list[NDArray[np.float64]]:
            made = client.animate(portrait, sound, frames=True, seed=1, **options)
            return embed.of_video(frame.picture for frame in made)

        silence = BytesIO()
        soundfile.write(silence, np.zeros(SAMPLE_RATE // 2), SAMPLE_RATE, format="WAV")
        for portrait in args.portraits:
            if not (rest := embedded(portrait, silence.getvalue(), **STILL)):
                print(f"{portrait.name}: dlib finds no face at rest")
                continue
            rests.append(rest[0])
            videos.append({
                emotion: embedded(
                    portrait, args.speech, emotion=emotion, emotion_strength=args.strength
                )
                for emotion in ("neutral", *EMOTIONS)
            })  # fmt: skip
    print(f"{len(rests)} portraits, strength {args.strength}: frames against the portrait at rest")
    for emotion in ("neutral", *EMOTIONS):
        _print(emotion, [np.array(v[emotion]) for v in videos], rests)
        nearest = [
            int(np.argmax(cosines(np.array(rests), frame))) == i
            for i, video in enumerate(videos)
            for frame in video[emotion]
        ]
        print(f"  nearest to their own portrait: {np.mean(nearest):.1%} of {len(nearest)} frames")
    strangers = list(combinations(rests, 2))
    _print("two portraits", [a[None] for a, _ in strangers], [b for _, b in strangers])


def _print(
    name: str, many: Sequence[NDArray[np.float64]], one: Sequence[NDArray[np.float64]]
) -> None:
    means = [float(cosines(a, b).mean()) for a, b in zip(many, one, strict=True)]
    if means:
        print(f"{name}: median {np.median(means):.3f} ({min(means):.3f} to {max(means):.3f})")


if __name__ == "__main__":
    main()

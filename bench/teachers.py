"""Variants of the teacher: its prediction target and its losses, after the same short training.

``bench/teachers.py --data GRID --speech SPEECH --synthetic CORPUS --out DIR``

All variants start from the shipped teacher's audio encoder, with the rest initialised at random,
and train to denoise for the same number of steps with the same seed. They are evaluated with six
guided steps. Prints a table. Existing variants are not trained again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.diffusion.denoiser import Conditions, X0Denoiser
from model.diffusion.schedule import CosineSchedule, like
from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import MotionWeights, load_weights, save_weights
from model.motion.network import MotionNet
from model.motion.rollout import MotionOnly
from model.types import Floats
from model.weights_file import weights_metadata
from training.data.batches import WindowSampler
from training.data.build import build_corpus
from training.data.corpus import Corpus, fit_lip_gap
from training.evaluation.evaluate import HeldOut, generate, held_out_set
from training.evaluation.metrics import JAW, correlation, figures
from training.losses import MotionLoss, dimension_weights
from training.teacher import STEPS, TeacherObjective
from training.trainer import RunOptions, Trainer

SAMPLER_STEPS = 6
COLUMNS = (
    "best phone r", "/p b m/ closed", "open vowels open", "silence closed", "jerk, jaw × 1000",
    "border jerk, jaw",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A teacher that differs from the shipped one in one setting."""

    predicts_v: bool = False
    velocity_weight: float = 1.0
    gap_weight: float = 1.0


VARIANTS = {
    "as shipped": Variant(),
    "v-prediction": Variant(predicts_v=True),
    "without velocities": Variant(velocity_weight=0.0),
    "without the lips' gap": Variant(gap_weight=0.0),
}


class FromV:
    """x0 of a network that predicts v = α·ε - σ·x0 (Salimans & Ho 2022, arXiv 2202.00512).

    The motion predicted from audio estimates x0, so it contributes -σ times itself to v.
    """

    def __init__(self, net: MotionNet) -> None:
        self._net, self._schedule = net, CosineSchedule()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        alpha, sigma = (like(a, x_t) for a in self._schedule.alpha_sigma(t))
        audio_motion, *rest = self._net.context(cond)
        beyond = self._net.denoise(x_t, t, (torch.zeros_like(audio_motion), *rest))
        return alpha * x_t - sigma * (beyond - sigma * audio_motion)


def train(corpus: Corpus, variant: Variant, options: RunOptions, *, seed: int) -> Path:
    """Train a teacher unless it exists. Returns the weights' path."""
    path = options.folder / "teacher.safetensors"
    if path.is_file() and (options.folder / "done").exists():
        return path
    shipped = load_weights(WEIGHTS / "motion-teacher.safetensors")
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = MotionNet(shipped.net.config)
    for part in ("audio_encoder", "audio_to_motion", "viseme_head"):
        getattr(net, part).load_state_dict(getattr(shipped.net, part).state_dict())
    weights = replace(shipped, net=net)
    loss = MotionLoss(
        weights.mean,
        weights.std,
        fit_lip_gap(corpus),
        dimension_weights(),
        variant.velocity_weight,
        variant.gap_weight,
    )
    windows = WindowSampler(corpus, weights.mean, weights.std, random=random)
    denoiser = FromV(net) if variant.predicts_v else X0Denoiser(net)
    trainer: Trainer[MotionNet] = Trainer(net, options, random)
    objective = TeacherObjective(net, windows, loss=loss, random=random, denoiser=denoiser)

    def save() -> None:
        metadata = weights_metadata("teacher", STEPS, trainer.step)
        save_weights(path, MotionWeights(trainer.averaged, weights.mean, weights.std, metadata))

    trainer.run(objective.losses, save)
    (options.folder / "done").touch()
    return path


def evaluate(path: Path, variant: Variant, tests: HeldOut, *, seeds: int) -> list[str]:
    """Cells of a row: r of the jaw, then `COLUMNS` of held-out clips and of unseen voices."""
    engine = (lambda weights: FromV(weights.net)) if variant.predicts_v else None
    pipeline = motion_pipeline("evaluated", load_weights(path), MotionOnly(), engine=engine)
    guidance = pipeline.metadata.guidance
    truth = np.concatenate([m[:, JAW] for m in tests.real])
    rows: list[list[float]] = []
    for seed in range(seeds):
        every: list[list[Floats]] = [
            generate(
                pipeline,
                utterances,
                seed * len(utterances),
                guidance=guidance,
                steps=SAMPLER_STEPS,
            )
            for utterances in (tests.clips, tests.voices)
        ]
        jaw = np.concatenate([m[:, JAW] for m in every[0]])
        clips = figures(every[0], tests.clips, tests.lip_gap)
        voices = figures(every[1], tests.voices, tests.lip_gap)
        rows.append([correlation(jaw, truth), *(f[c] for f in (clips, voices) for c in COLUMNS)])
    return [f"{value:.3f}" for value in np.mean(rows, axis=0)]


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--speech", "--synthetic", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--clips", type=int, default=25)
    parser.add_argument("--voices", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    phones = args.out / "phones.json"
    corpus = build_corpus(args.data, args.speech, args.synthetic, phones=phones, seed=0)
    paths = {}
    for name, variant in VARIANTS.items():
        folder = args.out / name.replace(" ", "-").replace("'", "")
        # Limited by steps, not by the day, so that a slower machine trains the same.
        paths[name] = train(corpus, variant, RunOptions(folder, 24 * 60, args.steps), seed=0)
    tests = held_out_set(args.data, args.speech, clips=args.clips, voices=args.voices)
    heads = ["", "jaw r", *COLUMNS, *(f"voices: {c}" for c in COLUMNS)]
    print("| " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * (len(heads) - 1))
    for name, variant in VARIANTS.items():
        print(
            f"| {name} | "
            + " | ".join(evaluate(paths[name], variant, tests, seeds=args.seeds))
            + " |"
        )


if __name__ == "__main__":
    main()

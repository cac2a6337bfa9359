"""Refit the mouth of a two-step student by least squares.

    python -m training.mouth_refit --data GRID --speech SPEECH --synthetic CORPUS \\
        --start STUDENT --out NEW

The last layers of a `MotionNet` are linear: a frame is W·(a, h, 1), with a its audio token and h
the last block's output, normed. W is fitted anew for the mouth, in closed form,

    W = argmin Σ m·|W·(a, h, 1) - y|² + λ·|W - W_former|²,

on windows as step distillation draws them: a prefix of the student's own making, at the start and
after its own first step. At the default scales y mixes the former prediction with the recording and
with a linear readout of the audio tokens, which follows speech better but closes lips less: where
the recording's lips are closed, the readout has no part and m is larger (`MIXES`). At other scales
y is that plus what the scales add to the former prediction. On noised recordings at any time y is
the former prediction.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.audio.log_mel import HOP, PREFIX
from model.diffusion.sampler import ddim_step
from model.diffusion.schedule import CosineSchedule, add_noise
from model.models import temperature_of
from model.motion.checkpoint import MotionWeights, load_weights, save_weights
from model.motion.network import MotionNet
from model.portrait.blendshapes import MOUTH
from model.types import ModelMetadata
from model.weights_file import DEFAULT_GUIDANCE
from training.data.batches import EncodedWindows, MotionBatch, WindowSampler
from training.data.build import build_corpus
from training.data.corpus import Corpus
from training.evaluation.baselines import Readout, around_tokens, fit_token_readout
from training.guidance_distillation import LIMITS, generated_prefix
from training.losses import CLOSED_GAP
from training.step_distillation import STEPS

BATCH = 40
PENALTY = 300.0  # λ
OTHER_SCALES_EVERY, OTHER_SCALES_WEIGHT = 4, 0.5  # of batches they lead, m
NOISED_EVERY, NOISED_WEIGHT = 4, 0.3  # of noised recordings: batches, m
_MOUTH = torch.tensor(MOUTH)


@dataclass(frozen=True)
class TargetMix:
    """What y consists of; the former prediction is the rest."""

    weight: float  # m
    recording: float
    readout: float


# By whether the motion is tracked, and whether its lips are closed.
MIXES = {
    (True, False): TargetMix(2.0, 0.6, 0.4),
    (True, True): TargetMix(6.0, 0.7, 0.0),
    (False, False): TargetMix(1.0, 0.0, 0.8),
    (False, True): TargetMix(12.0, 0.0, 0.0),
}


class OutputLayers:
    """The linear end of ``net``: W, and the inputs (a, h, 1) of its latest prediction."""

    def __init__(self, net: MotionNet) -> None:
        self._net = net
        self._hidden = torch.empty(0)
        net.norm.register_forward_hook(self._keep)

    def _keep(self, norm: nn.Module, inputs: object, output: Tensor) -> None:
        self._hidden = output

    def inputs(self, tokens: Tensor) -> Tensor:
        """(B, HOP, D) of the latest prediction, whose audio was encoded as ``tokens``."""
        new = tokens[:, PREFIX : PREFIX + HOP]
        return torch.cat([new, self._hidden, torch.ones_like(new[..., :1])], 2)

    def weights(self) -> Tensor:
        """W (58, D), in double precision."""
        audio, out = self._net.audio_to_motion, self._net.out
        return torch.cat([audio.weight, out.weight, (audio.bias + out.bias)[:, None]], 1).double()

    @torch.no_grad()
    def set_mouth(self, weights: Tensor) -> None:
        """Take the mouth's rows of W from ``weights`` (58, D)."""
        audio, out = self._net.audio_to_motion, self._net.out
        width = audio.weight.shape[1]
        rows = _MOUTH.nonzero()[:, 0]
        new = weights.to(out.weight)[rows]
        audio.weight[rows], out.weight[rows] = new[:, :width], new[:, width:-1]
        out.bias[rows] = new[:, -1] - audio.bias[rows]


class LeastSquares:
    """Normal equations of W; holds (D, D) and (D, 58)."""

    def __init__(self, former: Tensor, penalty: float) -> None:
        """``former`` (58, D): W is drawn towards it."""
        self._gram = penalty * torch.eye(former.shape[1], dtype=torch.float64)
        self._moment = penalty * former.T

    def add(self, inputs: Tensor, targets: Tensor, weight: Tensor) -> None:
        """``inputs`` (..., D), ``targets`` (..., 58) and m ``weight`` (...)."""
        x = inputs.flatten(0, -2).double()
        weighted = (weight.flatten().double()[:, None] * x).T
        self._gram += weighted @ x
        self._moment += weighted @ targets.flatten(0, -2).double()

    def solve(self) -> Tensor:
        """W (58, D)"""
        return torch.linalg.solve(self._gram, self._moment).T


def mixed_target(batch: MotionBatch, former: Tensor, readout: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, HOP, 58) at the default scales and m (B, HOP), see `MIXES`."""
    tracked = (batch.confidence == 1)[:, None].expand(batch.lip_gap.shape)
    closed = batch.lip_gap < CLOSED_GAP
    target, weight = former.clone(), torch.ones(batch.lip_gap.shape)
    for (is_tracked, is_closed), mix in MIXES.items():
        here = (tracked == is_tracked) & (closed == is_closed)
        off = mix.recording * (batch.x0 - former) + mix.readout * (readout - former)
        target[here] += off[here]
        weight[here] = mix.weight
    return target, weight


@torch.no_grad()
def refit_mouth(
    student: MotionWeights, corpus: Corpus, *, batches: int, random: torch.Generator
) -> None:
    """Refit ``student``, which takes scales as tokens, in place.

    Raises ``ValueError`` for a student of another kind.
    """
    if student.metadata.get("steps") != STEPS or not student.net.config.guided:
        raise ValueError(f"--start is no student of {STEPS} steps with scale tokens")
    net = student.net
    layers = OutputLayers(net)
    equations = LeastSquares(layers.weights(), PENALTY)
    sampler = WindowSampler(corpus, student.mean, student.std, random=random)
    windows = EncodedWindows(sampler, net.audio_encoder)
    readout = fit_token_readout(corpus.subset((corpus.confidence == 1).numpy()), net.audio_encoder)
    known = ModelMetadata.parse(student.metadata, guided=True)
    temperature = torch.from_numpy(temperature_of(*known.temperature))
    schedule = CosineSchedule()
    for index in tqdm(range(batches), unit="batch"):
        before, batch = windows.draw_run(BATCH, 2)
        tokens = batch.encoded
        assert tokens is not None
        default = {"guidance": torch.tensor(DEFAULT_GUIDANCE).expand(BATCH, 2)}
        other = {"guidance": _other_scales(random)}
        # In service a session's prefix and steps are made with one pair of scales.
        led_by_other = index % OTHER_SCALES_EVERY == OTHER_SCALES_EVERY - 1
        cond = batch.conditions()
        cond["prefix"], _ = generated_prefix(
            net,
            before,
            batch,
            scales=other if led_by_other else default,
            schedule=schedule,
            random=random,
            temperature=temperature,
        )
        estimate = _normalised(readout, tokens, student)
        x_t = temperature * torch.randn(batch.x0.shape, generator=random)
        for step in range(STEPS, 0, -1):
            t = torch.full((BATCH,), step / STEPS)
            scaled = net(x_t, t, cond | other)
            scaled_inputs = layers.inputs(tokens)
            plain = net(x_t, t, cond | default)
            target, weight = mixed_target(batch, plain, estimate)
            equations.add(layers.inputs(tokens), target, weight)
            effect = scaled - plain
            equations.add(scaled_inputs, target + effect, OTHER_SCALES_WEIGHT * weight)
            x0_hat = scaled if led_by_other else plain
            x_t = ddim_step(x_t, x0_hat, t=t, s=t - 1 / STEPS, schedule=schedule)
        if index % NOISED_EVERY == 0:
            noise = torch.randn(batch.x0.shape, generator=random)
            t = torch.rand(BATCH, generator=random).clamp(min=1e-2)
            plain = net(add_noise(schedule, batch.x0, noise, t=t), t, cond | default)
            weight = torch.full(batch.lip_gap.shape, NOISED_WEIGHT)
            equations.add(layers.inputs(tokens), plain, weight)
    layers.set_mouth(equations.solve())


def _normalised(readout: Readout, tokens: Tensor, student: MotionWeights) -> Tensor:
    motion = torch.from_numpy(readout(around_tokens(tokens.numpy())))
    return (motion - student.mean) / student.std


def _other_scales(random: torch.Generator) -> Tensor:
    """(BATCH, 2) within the limits: in turn audio, reference, both."""
    low, high = (torch.tensor(side) for side in zip(*LIMITS, strict=True))
    drawn = low + (high - low) * torch.rand(BATCH, 2, generator=random)
    which = torch.arange(BATCH) % 3
    return torch.where(
        torch.stack([which != 1, which != 0], 1), drawn, torch.tensor(DEFAULT_GUIDANCE)
    )


def main() -> None:
    """Write the refitted student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--speech", "--synthetic", "--start", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--batches", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    phones = args.out.with_name("phones.json")
    corpus = build_corpus(args.data, args.speech, args.synthetic, phones=phones, seed=0)
    student = load_weights(args.start)
    refit_mouth(student, corpus, batches=args.batches, random=torch.Generator().manual_seed(0))
    save_weights(args.out, student)


if __name__ == "__main__":
    main()

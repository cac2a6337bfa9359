"""Step distillation: a student of two steps from one of six.

Run in fewer steps than it was trained for, a student still follows the sound, but its face goes
quiet: large steps predict the conditional mean, so expression is under-dispersed. Its scales also
have less effect, as fewer steps push. So it is trained once more, on a frozen copy of itself, the
*former* student. At the times of its two steps, where its own first step leads (on-policy, see
`training.guidance_distillation`), it predicts x̂ at the default scales s̄ and x̂(s) at others, and

    L = d(x̂, b) + 4·closure(x̂) + 0.4·d(x̂(s), b + Δ(s)) + 0.1·Σ |x̂(s) - x̂ - Δ(s)|² / Σ |Δ(s)|²

with d and closure of `MotionLoss`.

b, for eyes, brows and head, is the x0 with which one step lands where three steps of the former
student do (progressive distillation, Salimans & Ho 2022, arXiv 2202.00512).

b, for the mouth, is what the former student predicts in one evaluation, x0*, mixed with the data:

    b = (1 - w)·x0* + w·x0

Sound determines the mouth, and the mean over what it leaves open follows it best. w is the weight
of mixed supervision (`training.sample_weighting`), with d(x0*, x0) taken over the mouth alone.

Δ(s) is the effect of the scales by the teacher's guidance (`model.diffusion.guidance`),

    Δ(s) = γ_aud·(s_aud - s̄_aud)·[x̂(ref,aud) - x̂(ref,∅)]
         + γ_ref·(s_ref - s̄_ref)·[x̂(ref,∅) - x̂(∅,∅)].

A third of the samples changes the audio scale, a third the reference scale, a third both. The last
term of L is taken in each third separately: the reference scale moves a face far less and would not
be learned beside the other. A student learns less than Δ(s), and its two steps push less often than
the teacher's twenty-five; the gains γ compensate for both, chosen so that the scales change whole
clips as much as the teacher's do.

Every fifth update starts at a noised recording at any time, where b is the former student's
prediction, so that other numbers of steps still work.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Forward, X0Denoiser
from model.diffusion.guidance import MultiCFGDenoiser
from model.diffusion.sampler import ddim_step, ddim_target
from model.diffusion.schedule import CosineSchedule, add_noise, like
from model.models import temperature_of
from model.motion.checkpoint import load_weights
from model.motion.network import MotionNet
from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH
from model.weights_file import DEFAULT_GUIDANCE
from training.data.batches import EncodedWindows, WindowSampler
from training.data.corpus import Corpus, fit_lip_gap
from training.guidance_distillation import (
    CLOSURE_WEIGHT,
    LIMITS,
    PREFIX_STEPS,
    SCALE_PARAMETERS,
    DistillConfig,
    WindowBatch,
    WindowLoss,
    WindowSource,
    generated_prefix,
    student_of,
    write_student,
)
from training.losses import MotionLoss, dimension_weights
from training.sample_weighting import SUPERVISION
from training.trainer import Losses, RunOptions, Trainer

BATCH = 40
STEPS = PREFIX_STEPS
FORMER_STEPS_PER_STEP = 3
# Steps before the start of five updates in turn; None starts at a noised recording.
START_STEPS = (0, 0, 1, 1, None)
OTHER_SCALES_WEIGHT = 0.4
SCALE_EFFECT_WEIGHT = 0.1
GAINS = torch.tensor((1.1, 2.0))  # γ, audio and reference
WARM_UP_STEPS, AVERAGE = 50, 0.99  # of `RunOptions`; shorter, as the student is nearly right
_DEFAULTS = torch.tensor(DEFAULT_GUIDANCE)


class StepDistillationObjective:
    """Distils random windows into two steps, as the module's docstring describes.

    ``student``, ``former`` and ``teacher`` predict x0; the first two take the scales.
    ``temperature`` (58,) scales the noise with which the student will be served.
    """

    def __init__(
        self,
        student: Forward,
        former: Forward,
        teacher: Forward,
        *,
        windows: WindowSource[WindowBatch],
        loss: WindowLoss,
        temperature: Tensor,
        random: torch.Generator,
        supervision: str = "mixed",
    ) -> None:
        self._student, self._former = student, former
        self._teacher = MultiCFGDenoiser(X0Denoiser(teacher))
        self._windows, self._loss = windows, loss
        self._temperature, self._random = temperature, random
        self._weight = SUPERVISION[supervision]()
        self._closure_weight = 0.0 if supervision == "teacher" else CLOSURE_WEIGHT
        self._schedule = CosineSchedule()
        self._mouth = torch.zeros(MOTION_DIM, dtype=torch.bool)
        self._mouth[:ACTION_COUNT] = torch.tensor(MOUTH)
        self._updates = 0

    def losses(self) -> Losses:
        """Scalars: ``loss`` and its terms; ``audio_missed`` and ``reference_missed`` are the
        relative errors of the scales' effects."""
        before, batch = self._windows.draw_run(BATCH, 2)
        done = START_STEPS[self._updates % len(START_STEPS)]
        other_scales = self._updates // len(START_STEPS) % 2 == 1
        self._updates += 1
        default = {"guidance": _DEFAULTS.expand(BATCH, 2)}
        other = {"guidance": self._other_scales()}
        # In service a session's prefix and steps are made with one pair of scales.
        scales = other if other_scales else default
        cond = batch.conditions()
        cond["prefix"], _ = generated_prefix(
            self._student,
            before,
            batch,
            scales=scales,
            schedule=self._schedule,
            random=self._random,
            temperature=self._temperature,
        )
        x_t, t = self._start(done, batch, cond | scales)
        target, weight = self._target(x_t, t, cond | default, batch=batch, recorded=done is None)
        effect = self._scale_effect(x_t, t, cond | other)
        x0_hat, scaled_hat = self._student(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]),
            _concatenated(cond | default, cond | other),
        ).chunk(2)
        plain = self._loss(x0_hat, target).mean()
        closure = self._loss.closure(x0_hat, batch.x0).mean()
        scaled = self._loss(scaled_hat, target + effect).mean()
        missed = _relative_errors(scaled_hat - x0_hat, effect)
        loss = plain + self._closure_weight * closure + OTHER_SCALES_WEIGHT * scaled
        return {
            "loss": loss + SCALE_EFFECT_WEIGHT * missed.sum(),
            "plain": plain,
            "closure": closure,
            "scales": scaled,
            "audio_missed": missed[0],
            "reference_missed": missed[1],
            "data_weight": weight.mean(),
        }

    @torch.no_grad()
    def _start(
        self, done: int | None, batch: WindowBatch, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x_t (B, T, 58) and t (B,) after ``done`` steps, see `START_STEPS`."""
        noise = torch.randn(batch.x0.shape, generator=self._random)
        if done is None:
            t = torch.rand(BATCH, generator=self._random).clamp(min=1e-2)
            return add_noise(self._schedule, batch.x0, noise, t=t), t
        x_t, t = self._temperature * noise, torch.ones(BATCH)
        for _ in range(done):
            then = t - 1 / STEPS
            x_t = ddim_step(x_t, self._student(x_t, t, cond), t=t, s=then, schedule=self._schedule)
            t = then
        return x_t, t

    @torch.no_grad()
    def _target(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: dict[str, Tensor],
        *,
        batch: WindowBatch,
        recorded: bool,
    ) -> tuple[Tensor, Tensor]:
        """b (B, T, 58) at the default scales, and w (B,)."""
        at_once = self._former(x_t, t, cond)
        if recorded:
            return at_once, torch.zeros_like(t)
        end, x, now = t - 1 / STEPS, x_t, t
        for i in range(1, FORMER_STEPS_PER_STEP + 1):
            then = torch.lerp(t, end, i / FORMER_STEPS_PER_STEP)
            x0_hat = at_once if i == 1 else self._former(x, now, cond)
            x, now = ddim_step(x, x0_hat, t=now, s=then, schedule=self._schedule), then
        stepwise = ddim_target(x_t, x, t=t, s=end, schedule=self._schedule)
        weight = self._weight(
            self._loss(torch.where(self._mouth, at_once, batch.x0), batch.x0),
            t,
            signal=self._schedule.alpha_sigma(t)[0] ** 2,
            confidence=batch.confidence,
            scale_distance=torch.zeros_like(t),  # b belongs to the default scales
        )
        mouth = torch.lerp(at_once, batch.x0, like(weight, x_t))
        return torch.where(self._mouth, mouth, stepwise), weight

    @torch.no_grad()
    def _scale_effect(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Δ(s) (B, T, 58), for the scales in ``cond``."""
        nothing, reference, both = self._teacher.branches(x_t, t, cond)
        gains = GAINS * (cond["guidance"] - _DEFAULTS)
        audio_gain, reference_gain = (like(g, x_t) for g in gains.unbind(1))
        return audio_gain * (both - reference) + reference_gain * (reference - nothing)

    def _other_scales(self) -> Tensor:
        """(B, 2) scales: in turn another audio scale, another reference scale, and both."""
        low, high = (torch.tensor(side) for side in zip(*LIMITS, strict=True))
        drawn = low + (high - low) * torch.rand(BATCH, 2, generator=self._random)
        which = torch.arange(BATCH) % 3
        return torch.where(torch.stack([which != 1, which != 0], 1), drawn, _DEFAULTS)


def _concatenated(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([rows, b[name]]) for name, rows in a.items()}


def _relative_errors(made: Tensor, wanted: Tensor) -> Tensor:
    """(3,) relative squared errors, one for each third of `_other_scales`."""
    missed, whole = ((x**2).mean((1, 2)) for x in (made - wanted, wanted))
    return torch.stack([missed[i::3].sum() / whole[i::3].sum() for i in range(3)])


def train_step_distilled(
    corpus: Corpus,
    teacher_path: Path,
    options: RunOptions,
    *,
    seed: int,
    start: Path,
    config: DistillConfig,
) -> Path:
    """Distil ``start``, a guided student of the teacher, into two steps.

    Of ``config``, ``supervision``, ``temperature`` and ``init_interp`` are used. Returns
    ``options.folder``/student.safetensors. Raises ``ValueError`` for files that do not fit.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    teacher, former = load_weights(teacher_path), load_weights(start)
    student = student_of(teacher.net, DistillConfig(), former.net)
    first = copy.deepcopy(student)
    student.train().requires_grad_(True)
    student.audio_encoder.requires_grad_(False)
    brief = replace(options, warm_up_steps=WARM_UP_STEPS, average=AVERAGE)
    trainer: Trainer[MotionNet] = Trainer(student, brief, random, fast=SCALE_PARAMETERS)
    windows = WindowSampler(corpus, teacher.mean, teacher.std, random=random)
    objective = StepDistillationObjective(
        student,
        CachedContext(former.net),
        CachedContext(teacher.net),
        windows=EncodedWindows(windows, teacher.net.audio_encoder),
        loss=MotionLoss(teacher.mean, teacher.std, fit_lip_gap(corpus), dimension_weights()),
        temperature=torch.from_numpy(temperature_of(*config.temperature)),
        random=random,
        supervision=config.supervision,
    )
    path = options.folder / "student.safetensors"
    trainer.run(
        objective.losses,
        lambda: write_student(path, trainer, first, teacher=teacher, steps=STEPS, config=config),
    )
    return path

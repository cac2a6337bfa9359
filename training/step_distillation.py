"""A student of two steps: what another one does in six, taught to it once more.

A student that is asked for fewer steps than it was taught follows the sound as well, but its face
goes quiet: in each large step it says the mean of all that may come, and means hardly blink. And
its scales turn less, since there are fewer steps to push in. So it learns again, from itself as it
was. At its two steps' own times, where its own first step leads (own paths, see `distill`), it
predicts x̂ at the default scales s̄ and x̂(s) at others, and

    L = d(x̂, b) + 4·closure(x̂) + 0.4·d(x̂(s), b + Δ(s)) + 0.1·Σ |x̂(s) - x̂ - Δ(s)|² / Σ |Δ(s)|²

with d and closure of `losses.MotionLoss`.

*Eyes, brows, head*: b is the x0 with which one step lands where three steps of the former student
do (progressive distillation, Salimans & Ho 2022, arXiv 2202.00512).

*Mouth*: there sound decides, and the mean of what it leaves open follows it best. So b is what the
former student says at once; where motion was tracked, β of it is the recording. Inferred mouths
say nothing here: all voices but one keep what the former student hears in them.

*Scales*: Δ(s) is the teacher's guidance (`diffusion.guidance`) as it sees it in one look,

    Δ(s) = γ_aud·(s_aud - s̄_aud)·[x̂(ref,aud) - x̂(ref,∅)]
         + γ_ref·(s_ref - s̄_ref)·[x̂(ref,∅) - x̂(∅,∅)].

One sample in three turns the audio scale, one the reference scale, one both, and the last sum of L
is taken in each third by itself: the reference scale moves a face far less, and beside the other
would not be learned. What is learned falls short of what is asked, and two steps push less often
than twenty-five: the gains γ make up for both, chosen so that the scales turn as far as the
teacher's do over whole clips.

Every fifth update starts at a noised recording, at any time, where b is what the former student
says: so other numbers of steps still work.
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
from model.motion.checkpoint import DEFAULT_GUIDANCE, load_weights
from model.motion.network import MotionNet
from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH
from training.data.batches import HeardWindows, WindowSampler
from training.data.corpus import Corpus, fit_lip_gap
from training.guidance_distillation import (
    CLOSURE_WEIGHT,
    LIMITS,
    OWN_STEPS,
    SCALES,
    Distance,
    DistillConfig,
    Drawn,
    Windows,
    own_prefix,
    student_of,
    write_student,
)
from training.losses import MotionLoss, dimension_weights
from training.trainer import Losses, RunOptions, Trainer

BATCH = 40
STEPS = OWN_STEPS
FORMER_STEPS_EACH = 3  # steps of the former student inside one of this one
# Of five updates in a row: how many steps were made before, or a noised recording.
PLACES = (0, 0, 1, 1, None)
OTHER_SCALES_WEIGHT = 0.4
TURN_WEIGHT = 0.1
DATA_SHARE = 0.35  # β
GAINS = torch.tensor((1.1, 2.0))  # γ, audio and reference
# Of a run that begins with what is nearly right, see `RunOptions`.
WARM_UP_STEPS, AVERAGE = 50, 0.99
_DEFAULTS = torch.tensor(DEFAULT_GUIDANCE)


class FewerSteps:
    """What a motion student of two steps is taught: `losses` is what the trainer minimises.

    ``student``, ``former`` and ``teacher`` predict x0; the first two take the scales.
    ``temperature`` (58,): of the noise that the student will be served with.
    """

    def __init__(
        self,
        student: Forward,
        former: Forward,
        teacher: Forward,
        windows: Windows[Drawn],
        loss: Distance,
        temperature: Tensor,
        random: torch.Generator,
    ) -> None:
        self._student, self._former = student, former
        self._teacher = MultiCFGDenoiser(X0Denoiser(teacher))
        self._windows, self._loss = windows, loss
        self._temperature, self._random = temperature, random
        self._schedule = CosineSchedule()
        self._mouth = torch.zeros(MOTION_DIM, dtype=torch.bool)
        self._mouth[:ACTION_COUNT] = torch.tensor(MOUTH)
        self._drawn = 0

    def losses(self) -> Losses:
        before, batch = self._windows.draw_run(BATCH, 2)
        place = PLACES[self._drawn % len(PLACES)]
        scaled = self._drawn // len(PLACES) % 2 == 1
        self._drawn += 1
        usual, other = {"guidance": _DEFAULTS.expand(BATCH, 2)}, {"guidance": self._other_scales()}
        # in service a session's frames before, and its steps, are made with the scales it is told
        told = other if scaled else usual
        cond = batch.conditions()
        cond["prefix"], _ = own_prefix(
            self._student, before, batch, told, self._schedule, self._random, self._temperature
        )
        x_t, t = self._start(place, batch, cond | told)
        wanted = self._wanted(x_t, t, cond | usual, batch, place is None)
        turned = self._turned(x_t, t, cond | other)
        x0_hat, scaled_hat = self._student(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]),
            _joined(cond | usual, cond | other),
        ).chunk(2)
        plain = self._loss(x0_hat, wanted).mean()
        closure = self._loss.closure(x0_hat, batch.x0).mean()
        scales = self._loss(scaled_hat, wanted + turned).mean()
        turn = _shares_missed(scaled_hat - x0_hat, turned)
        loss = plain + CLOSURE_WEIGHT * closure + OTHER_SCALES_WEIGHT * scales
        return {
            "loss": loss + TURN_WEIGHT * turn.sum(),
            "plain": plain,
            "closure": closure,
            "scales": scales,
            "audio_missed": turn[0],
            "reference_missed": turn[1],
        }

    @torch.no_grad()
    def _start(
        self, place: int | None, batch: Drawn, cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x_t and t (B,), see `PLACES`."""
        noise = torch.randn(batch.x0.shape, generator=self._random)
        if place is None:
            t = torch.rand(BATCH, generator=self._random).clamp(min=1e-2)
            return add_noise(self._schedule, batch.x0, noise, t), t
        x_t, t = self._temperature * noise, torch.ones(BATCH)
        for _ in range(place):
            then = t - 1 / STEPS
            x_t = ddim_step(x_t, self._student(x_t, t, cond), t, then, self._schedule)
            t = then
        return x_t, t

    @torch.no_grad()
    def _wanted(
        self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor], batch: Drawn, recorded: bool
    ) -> Tensor:
        """b, at the default scales."""
        at_once = self._former(x_t, t, cond)
        if recorded:
            return at_once
        end, x, now = t - 1 / STEPS, x_t, t
        for i in range(1, FORMER_STEPS_EACH + 1):
            then = torch.lerp(t, end, i / FORMER_STEPS_EACH)
            x0_hat = at_once if i == 1 else self._former(x, now, cond)
            x, now = ddim_step(x, x0_hat, now, then, self._schedule), then
        walked = ddim_target(x_t, x, t, end, self._schedule)
        said = torch.lerp(at_once, batch.x0, DATA_SHARE * like((batch.trust == 1).to(t), x_t))
        return torch.where(self._mouth, said, walked)

    @torch.no_grad()
    def _turned(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Δ(s)"""
        nothing, reference, both = self._teacher.branches(x_t, t, cond)
        push = GAINS * (cond["guidance"] - _DEFAULTS)
        audio, face = (like(s, x_t) for s in push.unbind(1))
        return audio * (both - reference) + face * (reference - nothing)

    def _other_scales(self) -> Tensor:
        """(B, 2): in turn another audio scale, another reference scale, and both."""
        low, high = (torch.tensor(side) for side in zip(*LIMITS, strict=True))
        drawn = low + (high - low) * torch.rand(BATCH, 2, generator=self._random)
        which = torch.arange(BATCH) % 3
        return torch.where(torch.stack([which != 1, which != 0], 1), drawn, _DEFAULTS)


def _joined(some: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([rows, others[name]]) for name, rows in some.items()}


def _shares_missed(made: Tensor, wanted: Tensor) -> Tensor:
    """(3,) of squares, in each third of (B, ...) rows, see `FewerSteps._other_scales`."""
    missed, whole = ((x**2).mean((1, 2)) for x in (made - wanted, wanted))
    return torch.stack([missed[i::3].sum() / whole[i::3].sum() for i in range(3)])


def train_step_distilled(
    corpus: Corpus,
    teacher_path: Path,
    options: RunOptions,
    seed: int,
    start: Path,
    config: DistillConfig,
) -> Path:
    """Teaches ``start``, a student with tokens, two steps; the teacher is the one it learned from.

    Of ``config``, temperature and part way count. Returns the weights' path,
    ``options.folder``/student.safetensors. Raises ``ValueError`` for files that are no such
    networks.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    teacher, former = load_weights(teacher_path), load_weights(start)
    student = student_of(teacher.net, DistillConfig(), former.net)
    first = copy.deepcopy(student)
    student.train().requires_grad_(True)
    student.audio.requires_grad_(False)
    brief = replace(options, warm_up_steps=WARM_UP_STEPS, average=AVERAGE)
    trainer: Trainer[MotionNet] = Trainer(student, brief, random, SCALES)
    objective = FewerSteps(
        student,
        CachedContext(former.net),
        CachedContext(teacher.net),
        HeardWindows(WindowSampler(corpus, teacher.mean, teacher.std, random), teacher.net.audio),
        MotionLoss(teacher.mean, teacher.std, fit_lip_gap(corpus), dimension_weights()),
        temperature_of(*config.temperature),
        random,
    )
    path = options.folder / "student.safetensors"

    trainer.run(
        objective.losses, lambda: write_student(path, trainer, first, teacher, STEPS, config)
    )
    return path

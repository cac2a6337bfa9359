"""The student's training: six steps that do what the teacher's 25 steps with guidance do.

Both of FADA's ideas meet here (arXiv 2412.16915):

Target. From a noised window x_t the guided teacher walks the interval [t, t - 1/6] in a few DDIM
steps; x0* is the x0 with which one single step would have landed at the same place (progressive
distillation, arXiv 2202.00512). The student gets t, the conditions and the two scales as tokens,
which begin at nothing and learn four times as fast. Three tenths of all samples have the default
scales.

Mixed supervision. Per sample, with d(a, b) the loss of `losses.MotionLoss`:

    L = (1 - w)·d(x̂, x0*) + w·d(x̂, x0),

w, the data's weight, is adaptive: see `trust`.

Own paths. In service x_t is what the student's earlier steps made, at scale 4 of a wide jaw; a
noised recording never looks so, and a student that saw only those takes such a jaw for an error
and mends it: its knob turned the first step, not the sixth. So every other update of a guided
student starts where its own steps lead from noise, at the scales that it was told (on-policy
distillation, Agarwal et al. 2024, arXiv 2306.13649; of diffusion models the backward distillation
of Kohler et al. 2024, arXiv 2405.05224). There the teacher alone speaks, w = 0: the recording is
not where x_t came from.

The encoder of sound stays the teacher's. It heard far more voices, for longer, than a student's
run has time for; left free it gains nothing (docs/experiments/motion.md), and could drift to the
one speaker whose data is believed.

A student can also be distilled without tokens (``balanced``): it then learns each branch of the
teacher by itself, conditions left out as in the teacher's own training, and is guided at run time
by `MultiCFGDenoiser`, three evaluations a step.

Lips that meet are asked of the data at any w (`MotionLoss.closure`, times 4): guidance opens the
mouth further, and a teacher that is unsure of a /p/ in a new voice leaves it half open. A wrong
closure is hardly seen; a missing one is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Denoiser, Forward, X0Denoiser
from model.diffusion.guidance import MultiCFGDenoiser
from model.diffusion.sampler import ddim_step, ddim_target, sample, uniform_timesteps
from model.diffusion.schedule import CosineSchedule, NoiseSchedule, add_noise, like
from model.motion.checkpoint import (
    DEFAULT_GUIDANCE,
    MotionWeights,
    load_weights,
    save_weights,
    weights_facts,
)
from model.motion.network import MotionNet
from model.types import MAX_TEMPERATURE, ScaleLimits
from training.data.batches import HeardWindows, WindowSampler
from training.data.corpus import Corpus, fit_lip_gap
from training.losses import MotionLoss, dimension_weights
from training.sample_weighting import SUPERVISION
from training.teacher import dropped
from training.trainer import Losses, RunOptions, Trainer
from training.weight_interpolation import init_interp

BATCH = 48
STEPS = 6
OWN_SHARE = 0.75  # of prefixes that the network made itself
OWN_STEPS = 2
OWN_PATH_EVERY = 2  # updates of a guided student: then one starts on its own way from noise
TEACHER_STEPS_EACH = 4  # teacher steps inside one student step
# Scales drawn: audio, reference. At 6 the teacher's jaw spreads four times as wide as at 2.
LIMITS: ScaleLimits = ((1.0, 4.0), (1.0, 4.0))
AT_DEFAULTS = 0.3  # share of samples with the default scales
CLOSURE_WEIGHT = 4.0
SCALES = "_scale."  # in the names of what makes tokens of scales


@dataclass(frozen=True)
class DistillConfig:
    """How a student is taught; anything but the defaults is an ablation."""

    guided: bool = True  # takes the scales (``fast``), else is run in three branches (``balanced``)
    embedded_scales: bool = False  # the scales in the time's embedding, not as tokens
    supervision: str = "mixed"  # see `SUPERVISION`
    init_interp: float = (
        1.0  # what is kept lies so far from its start to where it came, see `stages`
    )
    train_audio_encoder: bool = False  # the encoder of sound is trained along
    own_paths: bool = True  # of a guided one, see above
    temperature: tuple[float, float] = (1.0, 1.0)  # when it is served, see `ModelMetadata`

    def __post_init__(self) -> None:
        if not 0 <= self.init_interp <= 1:
            raise ValueError(f"--init-interp {self.init_interp}, expected 0 (the start) to 1")
        if not all(0 <= warmth <= MAX_TEMPERATURE for warmth in self.temperature):
            words = " ".join(str(warmth) for warmth in self.temperature)
            raise ValueError(f"--temperature {words}, expected 0 to {MAX_TEMPERATURE}")


class Drawn(Protocol):
    """B windows in the network's units, see `batches.Batch`; a frame's latent has any shape."""

    @property
    def x0(self) -> Tensor: ...

    @property
    def prefix(self) -> Tensor: ...

    @property
    def clean_prefix(self) -> Tensor: ...

    @property
    def trust(self) -> Tensor: ...

    def conditions(self) -> dict[str, Tensor]: ...


Batch = TypeVar("Batch", bound=Drawn)
Drawable = TypeVar("Drawable", bound=Drawn, covariant=True)


class Windows(Protocol[Drawable]):
    def draw_run(self, size: int, windows: int) -> Sequence[Drawable]:
        """``windows`` batches of ``size``: each the next window of the same clip and voice."""
        ...


class Distance(Protocol):
    """How far windows lie apart, and what is asked of the data at any w."""

    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        """(B,), see `losses.MotionLoss`."""
        ...

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        """(B,) by how much lips stay further apart than the data's where those are closed."""
        ...


@torch.no_grad()
def own_prefix(
    net: Forward,
    before: Drawn,
    batch: Drawn,
    scales: dict[str, Tensor],
    schedule: NoiseSchedule,
    random: torch.Generator,
    temperature: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """(B, P, ...) prefixes, most of them what ``net`` (x0) itself just made of the window
    ``before``, and (B, ...) by how much those end off the recording.

    ``temperature``: of the noise that it starts from.

    In service every prefix is the network's own; taught on recordings only, it would trust them
    too much and its errors would last.
    """
    noise = temperature * torch.randn(batch.x0.shape, generator=random)
    cond = before.conditions() | scales
    made = sample(X0Denoiser(net), noise, uniform_timesteps(OWN_STEPS), cond, schedule)
    own = torch.cat([before.prefix, made], dim=1)[:, -batch.prefix.shape[1] :]
    chosen = like(torch.rand(len(own), generator=random) < OWN_SHARE, own)
    off = torch.where(chosen[:, 0], (own - batch.clean_prefix)[:, -1], 0.0)
    return torch.where(chosen, own, batch.prefix), off


class StudentObjective(Generic[Batch]):
    """Distillation of random windows: `losses` is what the trainer minimises.

    ``student`` and ``teacher`` predict x0; a ``guided`` student takes the scales as tokens.
    """

    def __init__(
        self,
        student: Forward,
        teacher: Forward,
        windows: Windows[Batch],
        loss_of: Callable[[Batch], Distance],
        random: torch.Generator,
        supervision: str = "mixed",
        guided: bool = True,
        batch: int = BATCH,
        schedule: NoiseSchedule | None = None,
        limits: ScaleLimits = LIMITS,
        own_paths: bool = True,
    ) -> None:
        """``loss_of`` a batch: how its windows are compared. ``schedule`` None: the cosine's.
        ``limits``: the scales that a guided student learns. ``own_paths``: some of its updates
        start on its own way, unless it learns from the data alone."""
        self._student, self._windows, self._random = student, windows, random
        self._loss_of = loss_of
        self._guided, self._batch = guided, batch
        branch = X0Denoiser(teacher)
        self._teacher: Denoiser = MultiCFGDenoiser(branch) if self._guided else branch
        self._schedule: NoiseSchedule = schedule or CosineSchedule()
        self._weight = SUPERVISION[supervision]()
        self._limits, self._drawn = limits, 0
        self._own_paths = own_paths and guided and supervision != "data"
        self._closure_weight = 0.0 if supervision == "teacher" else CLOSURE_WEIGHT

    def losses(self) -> Losses:
        before, batch = self._windows.draw_run(self._batch, 2)
        scales = {"guidance": self._draw_guidance()} if self._guided else {}
        cond = batch.conditions() | scales
        cond["prefix"], off = own_prefix(
            self._student, before, batch, scales, self._schedule, self._random
        )
        if not self._guided:
            cond["has_audio"], cond["has_reference"] = dropped(self._batch, self._random)
        t = self._draw_times()
        eps = torch.randn(batch.x0.shape, generator=self._random)
        x_t = add_noise(self._schedule, batch.x0, eps, t)
        self._drawn += 1
        own = self._own_paths and self._drawn % OWN_PATH_EVERY == 0
        if own:
            # In turn, not by lot: a team's processes make as many steps as each other.
            left = STEPS - self._drawn // OWN_PATH_EVERY % STEPS
            x_t, t = self._own_path(eps, cond, left)
        target = self._teacher_target(x_t, t, cond)
        aside = torch.zeros_like(t)
        if self._guided:
            aside = (cond["guidance"] - torch.tensor(DEFAULT_GUIDANCE)).abs().sum(1)
        loss = self._loss_of(batch)
        weight = torch.zeros_like(t)
        if not own:
            signal = self._schedule.alpha_sigma(t)[0] ** 2
            weight = self._weight(loss(target, batch.x0), t, signal, batch.trust, aside)
        x0_hat = self._student(x_t, t, cond)
        from_teacher = loss(x0_hat, target)
        from_data = loss(x0_hat, batch.x0, off)
        closure = (loss.closure(x0_hat, batch.x0) * cond["has_audio"]).mean()
        mixed = ((1 - weight) * from_teacher + weight * from_data).mean()
        return {
            "loss": mixed + self._closure_weight * closure,
            "closure": closure,
            "teacher": from_teacher.mean(),
            "data": from_data.mean(),
            "data_weight": weight.mean(),
        }

    @torch.no_grad()
    def _own_path(self, noise: Tensor, cond: dict[str, Tensor], left: int) -> tuple[Tensor, Tensor]:
        """(B, T, ...) where the student comes from ``noise`` with ``left`` steps left, and what
        time (B,) it is there."""
        x = noise
        for step in range(STEPS, left, -1):
            now, then = (torch.full((len(x),), i / STEPS) for i in (step, step - 1))
            x = ddim_step(x, self._student(x, now, cond), now, then, self._schedule)
        return x, torch.full((len(x),), left / STEPS)

    @torch.no_grad()
    def _teacher_target(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """x0* (B, T, ...) of the guided teacher's walk over one student step."""
        end = (t - 1 / STEPS).clamp(min=0.0)
        x, now = x_t, t
        for i in range(1, TEACHER_STEPS_EACH + 1):
            then = torch.lerp(t, end, i / TEACHER_STEPS_EACH)
            x = ddim_step(x, self._teacher(x, now, cond), now, then, self._schedule)
            now = then
        return ddim_target(x_t, x, t, end, self._schedule)

    def _draw_guidance(self) -> Tensor:
        """(B, 2) scales: the defaults, or anywhere inside the limits."""
        low, high = (torch.tensor(side) for side in zip(*self._limits, strict=True))
        drawn = low + (high - low) * torch.rand(self._batch, 2, generator=self._random)
        usual = torch.rand(self._batch, 1, generator=self._random) < AT_DEFAULTS
        return torch.where(usual, torch.tensor(DEFAULT_GUIDANCE), drawn)

    def _draw_times(self) -> Tensor:
        """(B,) half at the six steps' own times, half anywhere, so any number of steps works."""
        own = torch.randint(1, STEPS + 1, (self._batch,), generator=self._random) / STEPS
        anywhere = torch.rand(self._batch, generator=self._random).clamp(min=1e-2)
        return torch.where(torch.rand(self._batch, generator=self._random) < 0.5, own, anywhere)


def student_of(
    teacher: MotionNet, distill: DistillConfig, start: MotionNet | None = None
) -> MotionNet:
    """A student with the teacher's parameters and, if guided, a fresh place for the scales.

    ``start``: a student to go on from, but with this teacher's encoder of sound.
    Raises ``ValueError`` for networks that are no such teacher or student.
    """
    if teacher.config.guided:
        raise ValueError("not a teacher's network: it takes guidance scales")
    config = replace(
        teacher.config,
        guided=distill.guided,
        embedded_scales=distill.embedded_scales,
        visemes=0,
    )
    student = MotionNet(config)
    fresh = {k: v for k, v in student.state_dict().items() if SCALES in k}
    taught = {k: v for k, v in teacher.state_dict().items() if not k.startswith("spoken.")}
    student.load_state_dict(fresh | taught)
    if start is not None:
        hears = {"audio_layers": config.audio_layers, "whisper_blocks": config.whisper_blocks}
        if asdict(start.config) | hears != asdict(config):
            raise ValueError(f"--start holds {start.config}, expected a student like {config}")
        known = {k: v for k, v in start.state_dict().items() if not k.startswith("audio.")}
        student.load_state_dict(student.state_dict() | known)
    return student


def train_student(
    corpus: Corpus,
    teacher_path: Path,
    options: RunOptions,
    seed: int,
    start: Path | None,
    distill: DistillConfig,
) -> Path:
    """Distils the teacher and returns the weights' path, ``options.folder``/student.safetensors.

    ``start``: a student's weights to go on from; fresh ones take the teacher's parameters.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    teacher = load_weights(teacher_path)
    begun = None if start is None else load_weights(start).net
    student = student_of(teacher.net, distill, begun)
    first = copy.deepcopy(student)
    student.train().requires_grad_(True)
    student.audio.requires_grad_(distill.train_audio_encoder)
    loss = MotionLoss(teacher.mean, teacher.std, fit_lip_gap(corpus), dimension_weights())
    windows = WindowSampler(corpus, teacher.mean, teacher.std, random)
    trainer: Trainer[MotionNet] = Trainer(student, options, random, SCALES)
    objective = StudentObjective(
        student,
        CachedContext(teacher.net),
        windows if distill.train_audio_encoder else HeardWindows(windows, teacher.net.audio),
        lambda _: loss,
        random,
        distill.supervision,
        student.config.guided,
        own_paths=distill.own_paths,
    )
    path = options.folder / "student.safetensors"

    trainer.run(
        objective.losses, lambda: write_student(path, trainer, first, teacher, STEPS, distill)
    )
    return path


def write_student(
    path: Path,
    trainer: Trainer[MotionNet],
    first: MotionNet,
    teacher: MotionWeights,
    steps: int,
    distill: DistillConfig,
) -> None:
    """Writes what a run keeps: a student of ``steps``, as far from ``first`` as ``distill`` says,
    in its ``teacher``'s units."""
    kept = copy.deepcopy(trainer.averaged)
    init_interp(first, kept, distill.init_interp)
    limits = LIMITS if kept.config.guided else None
    facts = weights_facts("student", steps, trainer.step, limits)
    facts["temperature"] = distill.temperature
    save_weights(path, MotionWeights(kept, teacher.mean, teacher.std, facts))

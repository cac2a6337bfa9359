"""Guidance distillation: a student of six steps for the teacher's 25 steps with guidance.

It joins FADA's two ideas (arXiv 2412.16915), with these choices:

Target. From a noised window x_t, the guided teacher takes a few DDIM steps over [t, t - 1/6]. x0*
is the x0 with which a single step lands at the same place (progressive distillation, Salimans & Ho
2022, arXiv 2202.00512). The student takes t, the conditions and the two scales as tokens, which
start at zero and learn four times as fast. Three tenths of the samples have the default scales.

Mixed supervision. Per sample, with d(a, b) a loss such as `MotionLoss`,

    L = (1 - w)·d(x̂, x0*) + w·d(x̂, x0),

where w is the data's weight (`training.sample_weighting`).

On-policy rollouts. In service, x_t comes from the student's own earlier steps; at an audio scale of
4 its jaw opens wider than in any noised recording. Trained on recordings only, a student corrects
such a jaw as an error, and its scale only affects the first step. So every second update of a
guided student starts where its own steps lead from noise at the sampled scales (on-policy
distillation, Agarwal et al. 2024, arXiv 2306.13649; for diffusion, backward distillation, Kohler et
al. 2024, arXiv 2405.05224). There w = 0, as x_t does not come from the recording.

Audio encoder. It stays the teacher's, which saw more voices for longer than a student's run has
time for. Trained along, it gains nothing (docs/experiments/motion.md) and could overfit to the one
speaker with high-confidence data.

Branches. Without scale tokens (``guided`` False) a student learns each of the teacher's branches,
with conditions dropped as in the teacher's training, and `MultiCFGDenoiser` guides it at run time
with three evaluations a step.

Closure. Where the data's lips are closed, `WindowLoss.closure` (times 4) is added at any w:
guidance opens the mouth further, and a teacher unsure of a /p/ in a new voice leaves it half open.
A wrong closure is hardly visible; a missing one is.
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
from model.motion.checkpoint import MotionWeights, load_weights, save_weights
from model.motion.network import MotionNet
from model.types import MAX_TEMPERATURE, ScaleLimits
from model.weights_file import DEFAULT_GUIDANCE, weights_metadata
from training.data.batches import EncodedWindows, WindowSampler
from training.data.corpus import Corpus, fit_lip_gap
from training.losses import MotionLoss, dimension_weights
from training.sample_weighting import SUPERVISION
from training.teacher import drop_conditions
from training.trainer import Losses, RunOptions, Trainer
from training.weight_interpolation import init_interp

BATCH = 48
STEPS = 6
GENERATED_PREFIX_SHARE = 0.75  # of prefixes
PREFIX_STEPS = 2  # sampler steps for a generated prefix
ON_POLICY_EVERY = 2  # updates of a guided student
TEACHER_STEPS_PER_STEP = 4  # of the student
# Audio and reference scales. At an audio scale of 6 the teacher's jaw varies four times as much as
# at 2.
LIMITS: ScaleLimits = ((1.0, 4.0), (1.0, 4.0))
DEFAULT_SCALES_SHARE = 0.3  # of samples
CLOSURE_WEIGHT = 4.0
SCALE_PARAMETERS = "_scale."  # in the names of the layers that embed scales


@dataclass(frozen=True)
class DistillConfig:
    """How a student is distilled; other than default values are ablations."""

    guided: bool = True  # with scale tokens; False: a multi-branch student
    embedded_scales: bool = False  # scales in the time embedding instead of tokens
    supervision: str = "mixed"  # a key of `SUPERVISION`
    init_interp: float = 1.0  # see `training.weight_interpolation.init_interp`
    train_audio_encoder: bool = False
    on_policy: bool = True  # guided students only
    temperature: tuple[float, float] = (
        1.0,
        1.0,
    )  # of eyes and head, see `ModelMetadata`

    def __post_init__(self) -> None:
        if not 0 <= self.init_interp <= 1:
            raise ValueError(f"--init-interp {self.init_interp}, expected 0 (the start) to 1")
        if not all(0 <= value <= MAX_TEMPERATURE for value in self.temperature):
            text = " ".join(str(value) for value in self.temperature)
            raise ValueError(f"--temperature {text}, expected 0 to {MAX_TEMPERATURE}")


class WindowBatch(Protocol):
    """B windows in the network's units, see `MotionBatch`; a frame's latent has any shape."""

    @property
    def x0(self) -> Tensor: ...

    @property
    def prefix(self) -> Tensor: ...

    @property
    def clean_prefix(self) -> Tensor: ...

    @property
    def confidence(self) -> Tensor: ...

    def conditions(self) -> dict[str, Tensor]: ...


Batch = TypeVar("Batch", bound=WindowBatch)
BatchCo = TypeVar("BatchCo", bound=WindowBatch, covariant=True)


class WindowSource(Protocol[BatchCo]):
    """Draws training windows."""

    def draw_run(self, size: int, windows: int) -> Sequence[BatchCo]:
        """``windows`` batches of ``size``: each the next window of the same clip and voice."""
        ...


class WindowLoss(Protocol):
    """A distance of windows, see `MotionLoss`."""

    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        """(B,) distances; ``before``: error of the frame before the window."""
        ...

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        """(B,) excess of the lip gap where the data's lips are closed."""
        ...


@torch.no_grad()
def generated_prefix(
    net: Forward,
    before: WindowBatch,
    batch: WindowBatch,
    *,
    scales: dict[str, Tensor],
    schedule: NoiseSchedule,
    random: torch.Generator,
    temperature: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Prefixes (B, P, ...) of ``batch``, most of them generated, and the error of their last frame.

    ``net`` (which predicts x0) generates the preceding window ``before`` from noise of
    ``temperature``. In service every prefix is generated; trained on recorded ones only, a network
    would trust prefixes too much and its errors would accumulate. The error (B, ...) is that
    against the recording, zero for a recorded prefix.
    """
    noise = temperature * torch.randn(batch.x0.shape, generator=random)
    cond = before.conditions() | scales
    made = sample(
        X0Denoiser(net), noise, uniform_timesteps(PREFIX_STEPS), cond=cond, schedule=schedule
    )
    own = torch.cat([before.prefix, made], dim=1)[:, -batch.prefix.shape[1] :]
    chosen = like(torch.rand(len(own), generator=random) < GENERATED_PREFIX_SHARE, own)
    off = torch.where(chosen[:, 0], (own - batch.clean_prefix)[:, -1], 0.0)
    return torch.where(chosen, own, batch.prefix), off


class StudentObjective(Generic[Batch]):
    """Distils random windows, as the module's docstring describes.

    ``student`` and ``teacher`` predict x0; a ``guided`` student takes the scales as tokens.
    """

    def __init__(
        self,
        student: Forward,
        teacher: Forward,
        windows: WindowSource[Batch],
        *,
        loss_of: Callable[[Batch], WindowLoss],
        random: torch.Generator,
        supervision: str = "mixed",
        guided: bool = True,
        batch: int = BATCH,
        schedule: NoiseSchedule | None = None,
        limits: ScaleLimits = LIMITS,
        on_policy: bool = True,
    ) -> None:
        """``loss_of``: the loss for a batch. ``schedule``: the cosine schedule by default.
        ``limits``: of the scales that a guided student learns."""
        self._student, self._windows, self._random = student, windows, random
        self._loss_of = loss_of
        self._guided, self._batch = guided, batch
        branch = X0Denoiser(teacher)
        self._teacher: Denoiser = MultiCFGDenoiser(branch) if self._guided else branch
        self._schedule: NoiseSchedule = schedule or CosineSchedule()
        self._weight = SUPERVISION[supervision]()
        self._limits, self._updates = limits, 0
        self._on_policy = on_policy and guided and supervision != "data"
        self._closure_weight = 0.0 if supervision == "teacher" else CLOSURE_WEIGHT

    def losses(self) -> Losses:
        """Scalars: ``loss``, its parts ``teacher``, ``data`` and ``closure``, the mean weight w as
        ``data_weight``."""
        before, batch = self._windows.draw_run(self._batch, 2)
        scales = {"guidance": self._draw_guidance()} if self._guided else {}
        cond = batch.conditions() | scales
        cond["prefix"], prefix_error = generated_prefix(
            self._student,
            before,
            batch,
            scales=scales,
            schedule=self._schedule,
            random=self._random,
        )
        if not self._guided:
            cond["has_audio"], cond["has_reference"] = drop_conditions(self._batch, self._random)
        t = self._draw_times()
        eps = torch.randn(batch.x0.shape, generator=self._random)
        x_t = add_noise(self._schedule, batch.x0, eps, t=t)
        self._updates += 1
        on_policy = self._on_policy and self._updates % ON_POLICY_EVERY == 0
        if on_policy:
            # In turn, not at random: parallel processes must make equally many steps.
            left = STEPS - self._updates // ON_POLICY_EVERY % STEPS
            x_t, t = self._rollout(eps, cond, left)
        target = self._teacher_target(x_t, t, cond)
        scale_distance = torch.zeros_like(t)
        if self._guided:
            scale_distance = (cond["guidance"] - torch.tensor(DEFAULT_GUIDANCE)).abs().sum(1)
        loss = self._loss_of(batch)
        weight = torch.zeros_like(t)
        if not on_policy:
            weight = self._weight(
                loss(target, batch.x0),
                t,
                signal=self._schedule.alpha_sigma(t)[0] ** 2,
                confidence=batch.confidence,
                scale_distance=scale_distance,
            )
        x0_hat = self._student(x_t, t, cond)
        from_teacher = loss(x0_hat, target)
        from_data = loss(x0_hat, batch.x0, prefix_error)
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
    def _rollout(self, noise: Tensor, cond: dict[str, Tensor], left: int) -> tuple[Tensor, Tensor]:
        """x_t (B, T, ...) and t (B,) of the student's steps from ``noise``, ``left`` steps before
        the end."""
        x = noise
        for step in range(STEPS, left, -1):
            now, then = (torch.full((len(x),), i / STEPS) for i in (step, step - 1))
            x = ddim_step(x, self._student(x, now, cond), t=now, s=then, schedule=self._schedule)
        return x, torch.full((len(x),), left / STEPS)

    @torch.no_grad()
    def _teacher_target(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """x0* (B, T, ...) of the guided teacher's steps over one student step."""
        end = (t - 1 / STEPS).clamp(min=0.0)
        x, now = x_t, t
        for i in range(1, TEACHER_STEPS_PER_STEP + 1):
            then = torch.lerp(t, end, i / TEACHER_STEPS_PER_STEP)
            x = ddim_step(x, self._teacher(x, now, cond), t=now, s=then, schedule=self._schedule)
            now = then
        return ddim_target(x_t, x, t=t, s=end, schedule=self._schedule)

    def _draw_guidance(self) -> Tensor:
        """(B, 2) scales: the defaults, or uniform within the limits."""
        low, high = (torch.tensor(side) for side in zip(*self._limits, strict=True))
        drawn = low + (high - low) * torch.rand(self._batch, 2, generator=self._random)
        usual = torch.rand(self._batch, 1, generator=self._random) < DEFAULT_SCALES_SHARE
        return torch.where(usual, torch.tensor(DEFAULT_GUIDANCE), drawn)

    def _draw_times(self) -> Tensor:
        """(B,) times: half of the six steps, half uniform, so that any number of steps works."""
        of_steps = torch.randint(1, STEPS + 1, (self._batch,), generator=self._random) / STEPS
        anywhere = torch.rand(self._batch, generator=self._random).clamp(min=1e-2)
        return torch.where(
            torch.rand(self._batch, generator=self._random) < 0.5, of_steps, anywhere
        )


def student_of(
    teacher: MotionNet, config: DistillConfig, start: MotionNet | None = None
) -> MotionNet:
    """A student with the teacher's parameters and, if guided, new scale layers.

    ``start``: a student to continue from, with this teacher's audio encoder. Raises ``ValueError``
    for a ``teacher`` that takes scales and a ``start`` of another configuration.
    """
    if teacher.config.guided:
        raise ValueError("the teacher takes guidance scales, expected a network without")
    net_config = replace(
        teacher.config,
        guided=config.guided,
        embedded_scales=config.embedded_scales,
        visemes=0,
    )
    student = MotionNet(net_config)
    fresh = {k: v for k, v in student.state_dict().items() if SCALE_PARAMETERS in k}
    inherited = {k: v for k, v in teacher.state_dict().items() if not k.startswith("viseme_head.")}
    student.load_state_dict(fresh | inherited)
    if start is not None:
        encoder = {
            "audio_layers": net_config.audio_layers,
            "whisper_blocks": net_config.whisper_blocks,
        }
        if asdict(start.config) | encoder != asdict(net_config):
            raise ValueError(f"--start holds {start.config}, expected a student like {net_config}")
        known = {k: v for k, v in start.state_dict().items() if not k.startswith("audio_encoder.")}
        student.load_state_dict(student.state_dict() | known)
    return student


def train_student(
    corpus: Corpus,
    teacher_path: Path,
    options: RunOptions,
    *,
    seed: int,
    start: Path | None,
    config: DistillConfig,
) -> Path:
    """Distil a motion teacher. Returns ``options.folder``/student.safetensors.

    ``start``: a student's weights to continue from instead of the teacher's parameters.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    teacher = load_weights(teacher_path)
    begun = None if start is None else load_weights(start).net
    student = student_of(teacher.net, config, begun)
    first = copy.deepcopy(student)
    student.train().requires_grad_(True)
    student.audio_encoder.requires_grad_(config.train_audio_encoder)
    loss = MotionLoss(teacher.mean, teacher.std, fit_lip_gap(corpus), dimension_weights())
    windows = WindowSampler(corpus, teacher.mean, teacher.std, random=random)
    trainer: Trainer[MotionNet] = Trainer(student, options, random, fast=SCALE_PARAMETERS)
    objective = StudentObjective(
        student,
        CachedContext(teacher.net),
        windows
        if config.train_audio_encoder
        else EncodedWindows(windows, teacher.net.audio_encoder),
        loss_of=lambda _: loss,
        random=random,
        supervision=config.supervision,
        guided=student.config.guided,
        on_policy=config.on_policy,
    )
    path = options.folder / "student.safetensors"
    trainer.run(
        objective.losses,
        lambda: write_student(path, trainer, first, teacher=teacher, steps=STEPS, config=config),
    )
    return path


def write_student(
    path: Path,
    trainer: Trainer[MotionNet],
    first: MotionNet,
    *,
    teacher: MotionWeights,
    steps: int,
    config: DistillConfig,
) -> None:
    """Write the trainer's average as a student of ``steps`` in its ``teacher``'s units.

    It is interpolated from ``first`` by ``config.init_interp``.
    """
    kept = copy.deepcopy(trainer.averaged)
    init_interp(first, kept, config.init_interp)
    limits = LIMITS if kept.config.guided else None
    metadata = weights_metadata("student", steps, trainer.step, limits=limits)
    metadata["temperature"] = config.temperature
    save_weights(path, MotionWeights(kept, teacher.mean, teacher.std, metadata))

"""The real size: a causal student of EchoMimic, by the same objective as all other students.

Only the denoising UNet learns. Reference UNet and face locator are the teacher's own, frozen: what
they make of a batch's portraits is made once and told to both. The teacher was never shown frames
before a window; the student is, and learns from the data and from its own frames to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Conditions, VDenoiser
from model.motion.checkpoint import weights_facts
from model.video.checkpoints import EchoMimic, load_echomimic
from model.video.face_locator import FaceLocator
from model.video.pipeline import HOP, SCHEDULE
from model.video.reference_unet import ReferenceUNet
from model.video.space import MASK_GROWTH
from model.video.unet3d import DenoisingUNet, student_of
from model.video.weights import load_net, save_net
from training.guidance_distillation import LIMITS, STEPS, StudentObjective
from training.trainer import RunOptions, Trainer
from training.video.clips import ClipEntry, VideoClips
from training.video.device import Machine
from training.video.losses import loss_of
from training.video.windows import VideoWindows, training_clips

BATCH = 1
PREFIX = 4
RATE = 2e-5  # the teacher is good: it is not to be forgotten
OWN_TEACHER = "denoising_unet.safetensors"  # of `save_net`

Net = TypeVar("Net", bound=nn.Module)


class Tokens:
    """What Whisper heard, as it lies in a folder; before a clip and after it, as at its ends."""

    lookahead = 0

    def __init__(self, clips: VideoClips, chosen: Sequence[ClipEntry], past: int) -> None:
        if clips.tokens is None:
            raise ValueError(f"{clips.folder} holds no tokens: build it with --whisper and --vae")
        self.past, self._tokens = past, clips.tokens
        self._first = torch.tensor([clip.first for clip in chosen])
        self._frames = torch.tensor([clip.frames for clip in chosen])

    def __call__(self, which: Tensor, start: Tensor, rows: int, random: torch.Generator) -> Tensor:
        """(B, rows, S, W), see `windows.Sound`."""
        at = start[:, None] + torch.arange(rows)
        inside = torch.minimum(at.clamp(min=0), self._frames[which, None] - 1)
        return torch.from_numpy(self._tokens[(inside + self._first[which, None]).numpy()]).float()


class Portraits:
    """Portraits → ``face`` and ``reference.PLACE`` by the frozen networks."""

    def __init__(self, nets: EchoMimic, side: int) -> None:
        self._nets, self._side = nets, side

    @torch.no_grad()
    def __call__(self, latents: Tensor, marks: Tensor) -> dict[str, Tensor]:
        """(B, C, h, w), (B, 62, 2) → conditions, see `windows.Tell`."""
        _, bank = self._nets.reference(latents)
        face = self._nets.face_locator(_masks(marks, self._side))
        return {"face": face} | {f"reference.{place}": seen for place, seen in bank.items()}


def _masks(marks: Tensor, side: int) -> Tensor:
    """(B, 62, 2) in sides of the square → (B, 1, side, side), 1 in the face's box, grown."""
    low, high = marks.amin(1) * side, marks.amax(1) * side
    grown = MASK_GROWTH * (high - low)
    pixels = torch.arange(side, device=marks.device) + 0.5
    inside = [
        (pixels > (low - grown)[:, k, None]) & (pixels < (high + grown)[:, k, None]) for k in (0, 1)
    ]
    return (inside[1][:, None, :, None] & inside[0][:, None, None, :]).float()


class Windowed:
    """A teacher that is shown its window only: the sound of the frames before is left out."""

    def __init__(self, denoiser: VDenoiser, prefix: int) -> None:
        self._denoiser, self._prefix = denoiser, prefix

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self._denoiser(x_t, t, {**cond, "audio": cond["audio"][:, self._prefix :]})


def load_teacher(folder: Path) -> EchoMimic:
    """EchoMimic's four files, or, where there is a ``denoising_unet.safetensors``, this project's
    own of any size. Raises ``ValueError`` that names what is missing or does not fit."""
    if not (folder / OWN_TEACHER).is_file():
        return load_echomimic(folder, torch.float32)
    return EchoMimic(
        _own(folder / "reference_unet.safetensors", ReferenceUNet),
        _own(folder / OWN_TEACHER, DenoisingUNet),
        _own(folder / "face_locator.safetensors", FaceLocator),
    )


def _own(path: Path, kind: type[Net]) -> Net:
    net, _ = load_net(path, torch.float32)
    if not isinstance(net, kind):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a {kind.__name__}")
    return net


class Stored:
    """The autoencoder's place in `VideoWindows`: its latents were made beforehand."""

    def __init__(self, latents: Sequence[int], side: int) -> None:
        self.latent_channels, self.stride = latents[0], side // latents[1]

    def encode(self, pixels: Tensor) -> Tensor:
        raise ValueError(f"pixels of shape {tuple(pixels.shape)} where latents are stored")

    decode = encode


def train_real_student(
    clips: VideoClips,
    teacher_folder: Path,
    options: RunOptions,
    machine: Machine,
    seed: int,
    supervision: str = "mixed",
    batch: int = BATCH,
    hop: int = HOP,
) -> Path:
    """Distils EchoMimic and returns the weights' path, ``options.folder``/student.safetensors:
    with EchoMimic's other files beside it, a folder for ``fada serve --model video``.

    Raises ``ValueError`` for clips without latents and tokens, and for files that do not fit.
    """
    if clips.latents is None:
        raise ValueError(f"{clips.folder} holds no latents: build it with --vae and --whisper")
    random = machine.random(seed)
    with machine.chosen():
        teacher = load_teacher(teacher_folder)
        for net in (teacher.reference, teacher.denoiser, teacher.face_locator):
            net.to(machine.device)
        student = student_of(teacher.denoiser, PREFIX).train().requires_grad_(True)
        chosen, shape = training_clips(clips), clips.latents.shape[1:]
        windows = VideoWindows(
            clips,
            chosen,
            Stored(shape, clips.side),
            PREFIX,
            random,
            machine.device,
            hop,
            Tokens(clips, chosen, PREFIX),
            Portraits(teacher, clips.side),
        )
        trainer: Trainer[DenoisingUNet] = Trainer(student, options, random, team=machine.team)
        machine.thrifty(student)
        objective = StudentObjective(
            VDenoiser(machine.precise(student), SCHEDULE),
            Windowed(VDenoiser(machine.precise(CachedContext(teacher.denoiser)), SCHEDULE), PREFIX),
            windows,
            loss_of,
            random,
            supervision,
            True,
            batch,
            SCHEDULE,
        )
        path = options.folder / "student.safetensors"

        def keep() -> None:
            facts = weights_facts("student", STEPS, trainer.step, LIMITS)
            save_net(path, trainer.averaged, facts | {"side": clips.side, "hop": hop})

        trainer.run(objective.losses, keep)
    return path

"""Distil EchoMimic into a causal student, by the objective that all students share.

Only the denoising UNet is trained. The reference UNet and the face locator are the teacher's,
frozen: their output for a batch's portraits is computed once and given to both networks. The
teacher never saw a prefix; the student learns to use one from the data and from its own frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Conditions, VDenoiser
from model.video.checkpoints import EchoMimic, load_echomimic
from model.video.face_locator import FaceLocator
from model.video.pipeline import HOP, SCHEDULE
from model.video.reference_unet import ReferenceUNet
from model.video.space import MASK_GROWTH
from model.video.unet3d import DenoisingUNet, student_of
from model.video.weights import load_net, save_net
from model.weights_file import weights_metadata
from training.guidance_distillation import LIMITS, STEPS, StudentObjective
from training.trainer import RunOptions, Trainer
from training.video.clips import ClipEntry, VideoClips
from training.video.device import Compute
from training.video.losses import loss_of
from training.video.windows import VideoWindows, clip_spans, training_clips

BATCH = 1
PREFIX = 4
RATE = 2e-5  # low, so that the student does not forget what the teacher can do
OWN_TEACHER = "denoising_unet.safetensors"  # as `save_net` writes it

Net = TypeVar("Net", bound=nn.Module)


class WhisperTokens:
    """An `AudioSource`: the Whisper states stored in a folder, clamped at a clip's ends."""

    lookahead = 0

    def __init__(self, clips: VideoClips, chosen: Sequence[ClipEntry], past: int) -> None:
        if clips.tokens is None:
            raise ValueError(f"{clips.folder} holds no tokens: build it with --whisper and --vae")
        self.past, self._tokens = past, clips.tokens
        self._first, self._frames = clip_spans(chosen)

    def __call__(
        self, which: Tensor, start: Tensor, rows: int, *, random: torch.Generator
    ) -> Tensor:
        """(B, rows, S, W), see `AudioSource`."""
        at = start[:, None] + torch.arange(rows)
        inside = torch.minimum(at.clamp(min=0), self._frames[which, None] - 1)
        return torch.from_numpy(self._tokens[(inside + self._first[which, None]).numpy()]).float()


class PortraitEncoder:
    """`PortraitConditions` of the frozen networks: ``face`` and the reference UNet's features."""

    def __init__(self, nets: EchoMimic, side: int) -> None:
        self._nets, self._side = nets, side

    @torch.no_grad()
    def __call__(self, latents: Tensor, marks: Tensor) -> dict[str, Tensor]:
        """Latents (B, C, h, w) and landmarks (B, 62, 2) → ``face`` and ``reference.PLACE``."""
        _, features = self._nets.reference(latents)
        face = self._nets.face_locator(_face_masks(marks, self._side))
        return {"face": face} | {f"reference.{place}": x for place, x in features.items()}


def _face_masks(marks: Tensor, side: int) -> Tensor:
    """(B, 62, 2) in sides of the square → (B, 1, side, side), 1 inside the face's grown box."""
    low, high = marks.amin(1) * side, marks.amax(1) * side
    grown = MASK_GROWTH * (high - low)
    pixels = torch.arange(side, device=marks.device) + 0.5
    inside = [
        (pixels > (low - grown)[:, k, None]) & (pixels < (high + grown)[:, k, None]) for k in (0, 1)
    ]
    return (inside[1][:, None, :, None] & inside[0][:, None, None, :]).float()


class WithoutPrefixAudio:
    """A teacher without a prefix: the audio of the prefix's frames is dropped."""

    def __init__(self, denoiser: VDenoiser, prefix: int) -> None:
        self._denoiser, self._prefix = denoiser, prefix

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self._denoiser(x_t, t, {**cond, "audio": cond["audio"][:, self._prefix :]})


def load_teacher(folder: Path) -> EchoMimic:
    """EchoMimic's four files or, if ``folder`` holds `OWN_TEACHER`, networks of `save_net`.

    Raises ``ValueError`` if a file is missing or does not fit.
    """
    if not (folder / OWN_TEACHER).is_file():
        return load_echomimic(folder, torch.float32)
    return EchoMimic(
        _load(folder / "reference_unet.safetensors", ReferenceUNet),
        _load(folder / OWN_TEACHER, DenoisingUNet),
        _load(folder / "face_locator.safetensors", FaceLocator),
    )


def _load(path: Path, kind: type[Net]) -> Net:
    net, _ = load_net(path, torch.float32)
    if not isinstance(net, kind):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a {kind.__name__}")
    return net


class StoredLatents:
    """A `Codec` for folders that hold latents: it only knows their shape."""

    def __init__(self, latents: Sequence[int], side: int) -> None:
        self.latent_channels, self.stride = latents[0], side // latents[1]

    def encode(self, pixels: Tensor) -> Tensor:
        """Always raises ``ValueError``."""
        raise ValueError(f"pixels of shape {tuple(pixels.shape)}, expected stored latents")

    decode = encode


def train_student(
    clips: VideoClips,
    teacher_folder: Path,
    options: RunOptions,
    *,
    compute: Compute,
    seed: int,
    supervision: str = "mixed",
    batch: int = BATCH,
    hop: int = HOP,
) -> Path:
    """Distil EchoMimic. Returns ``options.folder``/student.safetensors.

    With EchoMimic's other files beside it, that folder works for ``fada serve --model video``.
    Raises ``ValueError`` for clips without latents or tokens, and for files that do not fit.
    """
    if clips.latents is None:
        raise ValueError(f"{clips.folder} holds no latents: build it with --vae and --whisper")
    random = compute.generator(seed)
    with compute.default_device():
        teacher = load_teacher(teacher_folder)
        for net in (teacher.reference, teacher.denoiser, teacher.face_locator):
            net.to(compute.device)
        student = student_of(teacher.denoiser, PREFIX).train().requires_grad_(True)
        chosen = training_clips(clips)
        windows = VideoWindows(
            clips,
            chosen,
            StoredLatents(clips.latents.shape[1:], clips.side),
            prefix_frames=PREFIX,
            random=random,
            device=compute.device,
            hop=hop,
            audio=WhisperTokens(clips, chosen, PREFIX),
            portrait_conditions=PortraitEncoder(teacher, clips.side),
        )
        trainer: Trainer[DenoisingUNet] = Trainer(student, options, random, world=compute.world)
        compute.checkpoint_layers(student)
        frozen = VDenoiser(compute.autocast(CachedContext(teacher.denoiser)), SCHEDULE)
        objective = StudentObjective(
            VDenoiser(compute.autocast(student), SCHEDULE),
            WithoutPrefixAudio(frozen, PREFIX),
            windows,
            loss_of=loss_of,
            random=random,
            supervision=supervision,
            batch=batch,
            schedule=SCHEDULE,
        )
        path = options.folder / "student.safetensors"

        def save() -> None:
            metadata = weights_metadata("student", STEPS, trainer.step, limits=LIMITS)
            save_net(path, trainer.averaged, metadata | {"side": clips.side, "hop": hop})

        trainer.run(objective.losses, save)
    return path

"""A trained video student, from its files to a pipeline: video-tiny, and the real size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.audio.frontend import AudioWindowSpec
from model.audio.log_mel import LOG_MEL
from model.audio.whisper import WhisperEncoder, WhisperRows
from model.diffusion.denoiser import Conditions, Denoiser, Forward, VDenoiser, X0Denoiser
from model.diffusion.discrete_schedule import LinearBetaSchedule
from model.diffusion.guidance import guided
from model.diffusion.schedule import CosineSchedule, NoiseSchedule
from model.lru import LRUCache
from model.pipeline import Student, StudentPipeline, refuse_teacher
from model.types import ModelMetadata, Reference
from model.video import checkpoints
from model.video.config import FaceLocatorConfig, UNetConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.space import ReferenceEncoder, VideoSpace, masked_box
from model.video.tiny import PatchCodec, TinyNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.video.weights import load_net, on_meta, read_tensors

# (network, its audio windows, shape of its latent) -> its forward
Engine = Callable[[nn.Module, AudioWindowSpec, tuple[int, ...]], Forward]
TINY_SPACE, SPACE = "video-tiny", "video"
MAKE_TINY = "fada train video-student"
SIDE = 512  # pixels of the square, of the real size
HOP = 12  # new frames a window, of the real size
# EchoMimic's.
SCHEDULE = LinearBetaSchedule(1000, first=0.00085, last=0.012, zero_terminal_snr=True)
STUDENT = "student.safetensors"
VAE_FOLDER = "sd-vae-ft-mse"
# Each network's file: this project's own, which holds its sizes, or the release's.
FILES: dict[str, tuple[str, ...]] = {
    "denoising_unet": (STUDENT,),
    "reference_unet": ("reference_unet.safetensors", "reference_unet.pth"),
    "face_locator": ("face_locator.safetensors", "face_locator.pth"),
    "vae": (
        "vae.safetensors",
        f"{VAE_FOLDER}/diffusion_pytorch_model.safetensors",
        f"{VAE_FOLDER}/diffusion_pytorch_model.bin",
    ),
    "whisper": ("tiny.pt",),
}
KEPT_PORTRAITS = 16  # whose reference features stay: 23 MB each at real size, in half precision


def tiny_pipeline(
    name: str, path: Path, engine: Engine | None = None, *, licence: str | None = None
) -> StudentPipeline:
    """video-tiny from its one file. Raises ``ValueError`` for a teacher's or a foreign one."""
    net, metadata = load_net(path, torch.float32)
    if not isinstance(net, TinyNet):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a TinyNet")
    refuse_teacher(metadata, str(path), command=MAKE_TINY)
    config = net.config
    known = ModelMetadata.parse(metadata, guided=config.guided, licence=licence)
    space = VideoSpace(PatchCodec(config.patch), config.side, TINY_SPACE, view="face")

    def conditions(references: Sequence[Reference]) -> Conditions:
        features = np.stack([r.features.reshape(config.latent_shape) for r in references])
        return {"reference": torch.from_numpy(features)}

    return _pipeline(
        name,
        space,
        known,
        denoiser=X0Denoiser(net if engine is None else engine(net, LOG_MEL, config.latent_shape)),
        schedule=CosineSchedule(),
        window_spec=LOG_MEL,
        prefix=config.unet.prefix_frames,
        conditions=conditions,
        device=torch.device("cpu"),
    )


@dataclass(frozen=True)
class VideoNets:
    """The real size: a student with all that EchoMimic's networks do around it."""

    denoiser: DenoisingUNet
    reference: ReferenceUNet
    face_locator: FaceLocator
    vae: VAE
    whisper: WhisperEncoder
    metadata: Mapping[str, Any]


def load_video(folder: Path, device: torch.device, dtype: torch.dtype) -> VideoNets:
    """EchoMimic's files in ``folder``, and a student's.

    Raises ``ValueError`` that names all that is missing, or what does not fit.
    """
    found = _found(folder)
    student, metadata = load_net(found["denoising_unet"], dtype)
    if not isinstance(student, DenoisingUNet):
        what = type(student).__name__
        raise ValueError(f"{found['denoising_unet']} holds a {what}, expected a DenoisingUNet")
    file = str(found["denoising_unet"])
    refuse_teacher(metadata, file, command="distillation, docs/guide/video.md,")
    if not student.config.prefix_frames:
        raise ValueError(f"{found['denoising_unet']} has prefix_frames = 0, expected at least 1")
    whisper = checkpoints.load_whisper(found["whisper"], dtype=torch.float32)
    nets = VideoNets(
        denoiser=student,
        reference=_load(found["reference_unet"], dtype, ReferenceUNet, release=_release_reference),
        face_locator=_load(found["face_locator"], dtype, FaceLocator, release=_release_locator),
        vae=_load(found["vae"], dtype, VAE, release=_release_vae),
        whisper=whisper,
        metadata=metadata,
    )
    for net in (nets.denoiser, nets.reference, nets.face_locator, nets.vae, nets.whisper):
        net.to(device)
    return nets


def video_pipeline(
    name: str, folder: Path, *, engine: Engine | None = None, device: torch.device | None = None
) -> StudentPipeline:
    """The real size from its folder, see `FILES`; on a GPU in half precision, where there is one.

    Its student's metadata may give ``side``, the square's pixels, and ``hop``, a window's frames.
    Raises ``ValueError`` as `load_video` does.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    nets = load_video(folder, device, dtype)
    net = nets.denoiser
    known = ModelMetadata.parse(nets.metadata, guided=net.config.guided)
    space = VideoSpace(nets.vae, int(nets.metadata.get("side", SIDE)), SPACE, device=device)
    prefix, hop = net.config.prefix_frames, int(nets.metadata.get("hop", HOP))
    encode = ReferenceEncoder(nets.reference, nets.face_locator, space.latent_shape)
    window_spec = AudioWindowSpec(WhisperRows(nets.whisper), prefix, hop, 0)
    forward = net if engine is None else engine(net, window_spec, space.latent_shape)
    return _pipeline(
        name,
        space,
        known,
        denoiser=VDenoiser(forward, SCHEDULE),
        schedule=SCHEDULE,
        window_spec=window_spec,
        prefix=prefix,
        conditions=KeptReferences(encode, KEPT_PORTRAITS),
        device=device,
    )


def _pipeline(
    name: str,
    space: VideoSpace,
    metadata: ModelMetadata,
    *,
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    window_spec: AudioWindowSpec,
    prefix: int,
    conditions: Callable[[Sequence[Reference]], Conditions],
    device: torch.device,
) -> StudentPipeline:
    shape = space.latent_shape
    student = Student(
        denoiser=guided(denoiser, metadata.limits),
        schedule=schedule,
        window_spec=window_spec,
        prefix=prefix,
        mean=torch.zeros(shape, device=device),  # latents are about normal as they are
        std=torch.ones(shape, device=device),
        conditions=conditions,
    )
    return StudentPipeline(name, metadata, space=space, student=student)


class KeptReferences:
    """References → conditions, cached for ``size`` portraits.

    Not thread-safe, like the networks behind it.
    """

    def __init__(self, encode: Callable[[Reference], dict[str, Tensor]], size: int) -> None:
        self._encode = encode
        self._cache = LRUCache[bytes, dict[str, Tensor]](size)

    def __call__(self, references: Sequence[Reference]) -> Conditions:
        """One batch's, in order."""
        each = [self._one(reference) for reference in references]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def _one(self, reference: Reference) -> dict[str, Tensor]:
        content = reference.features.tobytes() + masked_box(reference).tobytes()
        key = hashlib.sha256(content).digest()
        return self._cache.get(key, lambda: self._encode(reference))


def _found(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder, expected one with EchoMimic's files (docs/guide/video.md)"
        )
    paths = {net: [folder / name for name in names] for net, names in FILES.items()}
    found = {net: next((p for p in some if p.is_file()), None) for net, some in paths.items()}
    missing = [" or ".join(FILES[net]) for net, path in found.items() if path is None]
    if missing:
        words = "; ".join(missing)
        if found["denoising_unet"] is None:
            words += ". EchoMimic alone cannot be streamed: distil a student, docs/guide/video.md"
        raise ValueError(f"{folder} lacks {words}")
    return {net: path for net, path in found.items() if path is not None}


def _load(path: Path, dtype: torch.dtype, kind: type[Any], *, release: Callable[..., Any]) -> Any:
    """One network of ``kind``, from this project's own file or from one of the release."""
    if path.name not in {names[0] for names in FILES.values()}:
        return release(path, dtype)
    net, _ = load_net(path, dtype)
    if not isinstance(net, kind):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a {kind.__name__}")
    return net


def _release_reference(path: Path, dtype: torch.dtype) -> ReferenceUNet:
    net = on_meta(lambda: ReferenceUNet(UNetConfig(audio_width=None, motion=None)))
    checkpoints.load(net, read_tensors(path), checkpoints.UNET, dtype=dtype)
    return net


def _release_locator(path: Path, dtype: torch.dtype) -> FaceLocator:
    net = on_meta(lambda: FaceLocator(FaceLocatorConfig()))
    checkpoints.load(net, read_tensors(path), checkpoints.FACE_LOCATOR, dtype=dtype)
    return net


def _release_vae(path: Path, dtype: torch.dtype) -> VAE:
    return checkpoints.load_vae(path, dtype=dtype)

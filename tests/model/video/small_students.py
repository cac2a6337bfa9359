"""Video students with random parameters, small and whole: as files, as training leaves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from model.audio.whisper import WhisperConfig, WhisperEncoder
from model.video.checkpoints import WHISPER
from model.video.config import FaceLocatorConfig, MotionConfig, TinyConfig, UNetConfig, VAEConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.tiny import TinyNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.video.weights import Renamer, save_net

METADATA: dict[str, object] = {
    "role": "student",
    "steps": 2,
    "guidance": [2.0, 1.0],
    "limits": [[1.0, 4.0], [1.0, 3.0]],
}
MOTION = MotionConfig((True, True), True, (True, True), 2, attentions=1, groups=2, positions=16)
SIDE, HOP = 64, 6  # of the one that stands for the real size


def unet(channels: int, audio_width: int, prefix: int, guided: bool) -> UNetConfig:
    return UNetConfig(
        in_channels=channels,
        out_channels=channels,
        channels=(8, 16),
        layers=1,
        attention=(False, True),
        heads=(2, 2),
        groups=4,
        audio_width=audio_width,
        motion=MOTION,
        prefix_frames=prefix,
        guided=guided,
    )


def shaken(net: nn.Module) -> nn.Module:
    """No parameter is left at zero, which would hide what depends on what."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return net


def one_level(config: UNetConfig) -> UNetConfig:
    """Only its finer level and the middle, which compile in half the time."""
    motion = replace(MOTION, down=MOTION.down[:1], up=MOTION.up[:1])
    first = {name: getattr(config, name)[:1] for name in ("channels", "attention", "heads")}
    return replace(config, motion=motion, **first)


def write_tiny(
    path: Path, guided: bool = True, *, shallow: bool = False, **metadata: object
) -> Path:
    """video-tiny, 32 pixels a side; ``shallow``: of one level."""
    torch.manual_seed(0)
    config = unet(48, 16, 2, guided)
    net = TinyNet(TinyConfig(32, 4, 1, 2, one_level(config) if shallow else config))
    shaken(net)
    save_net(path, net, METADATA | metadata)
    return path


def write_video(folder: Path, prefix: int = 3, **metadata: object) -> Path:
    """The real size's folder, with networks that are not of that size."""
    torch.manual_seed(0)
    width, layers = 10, 2
    student = unet(4, width, prefix, True)
    still = UNetConfig(4, 4, (8, 16), 1, (False, True), (2, 2), 4, audio_width=None, motion=None)
    known = METADATA | {"side": SIDE, "hop": HOP} | metadata
    for name, net in {
        "student": DenoisingUNet(student),
        "reference_unet": ReferenceUNet(still),
        "face_locator": FaceLocator(FaceLocatorConfig(1, (2, 3, 4), 8)),
        "vae": VAE(VAEConfig((4, 4, 8), 1, 4, 2)),
    }.items():
        shaken(net)
        save_net(folder / f"{name}.safetensors", net, known if name == "student" else {})  # type: ignore[arg-type]
    whisper = WhisperEncoder(WhisperConfig(80, 100, width, 2, layers))
    nn.init.normal_(whisper.positions)
    renamer = Renamer(WHISPER)
    parameters = {f"encoder.{renamer.foreign(k)}": v for k, v in whisper.state_dict().items()}
    names = ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
    dims = dict(zip(names, (80, 100, width, 2, layers), strict=True))
    torch.save({"dims": dims, "model_state_dict": parameters}, folder / "tiny.pt")
    return folder

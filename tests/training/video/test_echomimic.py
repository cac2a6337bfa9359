"""The full-size student's distillation, with small networks of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.video.pipeline import video_pipeline
from model.video.unet3d import DenoisingUNet
from model.video.weights import load_net, save_net
from tests.model.video.small_students import HOP, shaken, unet, write_video
from training.trainer import RunOptions
from training.video.clips import ClipPiece, VideoClips, write_clips
from training.video.device import Compute
from training.video.echomimic import (
    PREFIX,
    PortraitEncoder,
    WhisperTokens,
    load_teacher,
    train_student,
)
from training.video.windows import training_clips

CPU = torch.device("cpu")
WIDTH, DEPTHS = 10, 3


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A folder as EchoMimic's, with an autoencoder and Whisper, all small."""
    folder = tmp_path / "echomimic"
    folder.mkdir()
    write_video(folder)
    net = DenoisingUNet(unet(4, WIDTH, 0, False))
    shaken(net)
    save_net(folder / "denoising_unet.safetensors", net, {})
    return folder


@pytest.fixture
def encoded(make_piece: Callable[..., ClipPiece], tmp_path: Path) -> VideoClips:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float16)

    pieces = [
        replace(make_piece(k), latents=normal(40, 4, 4, 4), tokens=normal(40, 10 * DEPTHS, WIDTH))
        for k in range(4)
    ]
    return write_clips(tmp_path / "clips", pieces, frames=160, side=16)


# TensorBoard's writer thread outlives the test by a moment
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_distilled_student_can_be_served(
    encoded: VideoClips, teacher: Path, tmp_path: Path
) -> None:
    options = RunOptions(tmp_path / "run", 5.0, 2, peak_rate=1e-3)
    before = load_teacher(teacher).denoiser.conv_in.weight
    path = train_student(encoded, teacher, options, compute=Compute(CPU), seed=0, batch=2, hop=HOP)
    student, metadata = load_net(path, torch.float32)
    assert isinstance(student, DenoisingUNet)
    assert student.config.guided and student.config.prefix_frames == PREFIX
    assert metadata["hop"] == HOP and metadata["side"] == 16 and metadata["steps"] == 6
    assert not torch.equal(student.conv_in.weight, before)
    (teacher / "student.safetensors").write_bytes(path.read_bytes())
    pipeline = video_pipeline("own", teacher, device=CPU)
    assert pipeline.window_spec.hop == HOP and pipeline.metadata.nfe_per_window == 6


def test_features_beyond_a_clip_repeat_its_ends(encoded: VideoClips) -> None:
    assert encoded.tokens is not None
    chosen = training_clips(encoded)
    source = WhisperTokens(encoded, chosen, PREFIX)
    rows = source(torch.tensor([1]), torch.tensor([-3]), 50, random=torch.Generator())
    first = torch.from_numpy(np.array(encoded.tokens[chosen[1].first])).float()
    assert rows.shape == (1, 50, 10 * DEPTHS, WIDTH)
    for row in range(4):
        torch.testing.assert_close(rows[0, row], first)
    torch.testing.assert_close(rows[0, 42], rows[0, 49])


def test_a_portrait_is_encoded_once_for_both_networks(encoded: VideoClips, teacher: Path) -> None:
    nets = load_teacher(teacher)
    latents = torch.randn(2, 4, 4, 4)
    marks = torch.full((2, 62, 2), 0.5)
    marks[:, 0], marks[1, 1] = 0.3, 0.9
    conditions = PortraitEncoder(nets, 16)(latents, marks)
    assert conditions["face"].shape[0] == 2
    assert not torch.equal(conditions["face"][0], conditions["face"][1])
    names = {name for name in nets.denoiser.condition_names if name.startswith("reference.")}
    assert names <= conditions.keys()


def test_clips_that_were_not_encoded_are_rejected(
    clips: VideoClips, teacher: Path, tmp_path: Path
) -> None:
    options = RunOptions(tmp_path / "run", 5.0, 1)
    with pytest.raises(ValueError, match="holds no latents"):
        train_student(clips, teacher, options, compute=Compute(CPU), seed=0)

"""Teacher and students of video-tiny, trained for a few steps by the command's own code."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.video.config import MotionConfig, tiny_config, tiny_unet
from model.video.tiny import TinyNet
from model.video.weights import load_net
from tests.training.helpers import fada_train
from training.trainer import RunOptions
from training.video.clips import VideoClips
from training.video.device import Compute
from training.video.tiny import (
    MouthRegressor,
    VideoAudioEncoderObjective,
    VideoTeacherObjective,
    tiny_windows,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that learns nothing need not be of the size that ships."""
    motion = MotionConfig((True,), True, (True,), 2, attentions=1, groups=8, positions=16)
    unet = replace(tiny_unet(), channels=(16,), heads=(2,), attention=(False,), motion=motion)
    monkeypatch.setattr("model.video.config.tiny_unet", lambda: unet)


# TensorBoard's writer thread outlives the test by a moment
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_train_teacher_resume_and_distil(clips_folder: Path, tmp_path: Path) -> None:
    data = ("--data", clips_folder, "--threads", 1, "--minutes", 5, "--batch", 2)
    out = tmp_path / "teacher"
    assert fada_train("video-teacher", *data, "--out", out, "--steps", 1) == 0
    assert fada_train("video-teacher", *data, "--out", out, "--steps", 2) == 0
    weights = out / "teacher.safetensors"
    teacher, metadata = load_net(weights)
    assert isinstance(teacher, TinyNet) and teacher.config == tiny_config(16)
    assert metadata["role"] == "teacher" and metadata["trained_steps"] == 2

    taught = (*data, "--teacher", weights, "--steps", 1)
    assert fada_train("video-student", *taught, "--out", tmp_path / "fast") == 0
    student, metadata = load_net(tmp_path / "fast" / "student.safetensors")
    assert isinstance(student, TinyNet) and student.config.guided
    assert metadata["steps"] == 6 and "limits" in metadata

    assert (
        fada_train("video-student-multibranch", *taught, "--out", tmp_path / "three", "--recompute")
        == 0
    )
    balanced, metadata = load_net(tmp_path / "three" / "student.safetensors")
    assert isinstance(balanced, TinyNet) and not balanced.config.guided
    assert "limits" not in metadata

    start = ("--start", tmp_path / "three" / "student.safetensors")
    assert fada_train("video-student", *taught, *start, "--out", tmp_path / "on") == 0
    grown, metadata = load_net(tmp_path / "on" / "student.safetensors")
    assert isinstance(grown, TinyNet) and grown.config.guided and "limits" in metadata
    start = ("--start", tmp_path / "fast" / "student.safetensors")
    for other in (("video-student-multibranch",), ("video-student", "--scales", "embedding")):
        with pytest.raises(ValueError, match="a student of the other kind"):
            fada_train(*other, *taught, *start, "--out", tmp_path / "back")

    compared = (*taught, "--scales", "embedding", "--out", tmp_path / "embedded")
    assert fada_train("video-student", *compared) == 0
    embedded, _ = load_net(tmp_path / "embedded" / "student.safetensors")
    assert isinstance(embedded, TinyNet) and embedded.config.unet.embedded_scales


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words += ["--master-addr", "127.0.0.1", "--master-port", str(port), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_train_teacher_and_student(clips_folder: Path, tmp_path: Path) -> None:
    def train(role: str, *words: object) -> None:
        data = ("--data", clips_folder, "--threads", 1, "--minutes", 5, "--batch", 2, "--steps", 2)
        command = ("-m", "fada.cli", "train", role, *data, *words)
        done = torchrun(*(str(word) for word in command))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("safetensors") == 1  # only the leader prints

    train("video-teacher", "--out", tmp_path / "teacher")
    weights = tmp_path / "teacher" / "teacher.safetensors"
    teacher, metadata = load_net(weights)
    assert isinstance(teacher, TinyNet) and metadata["trained_steps"] == 2
    train("video-student", "--teacher", weights, "--out", tmp_path / "fast")
    student, _ = load_net(tmp_path / "fast" / "student.safetensors")
    assert isinstance(student, TinyNet) and student.config.guided


def test_incompatible_flags_are_rejected(clips_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --teacher"):
        fada_train("video-student", "--data", clips_folder, "--out", tmp_path)
    with pytest.raises(ValueError, match=r"holds no clips\.json"):
        fada_train("video-teacher", "--data", tmp_path, "--out", tmp_path)
    with pytest.raises(ValueError, match="--batch -1"):
        fada_train("video-teacher", "--data", clips_folder, "--out", tmp_path, "--batch", -1)


def objective_of(clips: VideoClips, compute: Compute) -> tuple[TinyNet, VideoTeacherObjective]:
    random = compute.generator(0)
    net = TinyNet(tiny_config(16))
    with torch.no_grad():  # what starts silent would hide what it does
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    windows = tiny_windows(clips, net.config, random, compute=compute)
    return net, VideoTeacherObjective(net, windows, random, compute=compute, batch=2)


def test_checkpointed_layers_give_the_same_gradients(clips: VideoClips) -> None:
    gradients = []
    for compute in (Compute(CPU), Compute(CPU, recompute=True)):
        net, objective = objective_of(clips, compute)
        compute.checkpoint_layers(net)
        objective.losses()["loss"].backward()
        gradients.append(net.unet.conv_in.weight.grad)
    torch.testing.assert_close(*gradients)


def test_bfloat16_is_about_the_same(clips: VideoClips) -> None:
    losses = [
        objective_of(clips, Compute(CPU, bf16=bf16))[1].losses()["loss"] for bf16 in (False, True)
    ]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0.0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_audio_encoder_learns_mouth_openness(clips: VideoClips, tmp_path: Path) -> None:
    from training.trainer import Trainer

    compute = Compute(CPU)
    random = compute.generator(0)
    net = TinyNet(tiny_config(16))
    windows = tiny_windows(clips, net.config, random, compute=compute)
    regressor = MouthRegressor(net.audio_encoder, windows.mouth_dim)
    objective = VideoAudioEncoderObjective(regressor, windows, 16)
    before = objective.losses()["lip_gap"].item()
    options = RunOptions(tmp_path, 5.0, 60, warm_up_steps=10)
    Trainer(regressor, options, random).run(objective.losses, lambda: None)
    assert objective.losses()["lip_gap"].item() < 0.7 * before

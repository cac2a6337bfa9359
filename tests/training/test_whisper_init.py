"""An encoder initialised from Whisper gives Whisper's features from our own log-mel rows."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.audio import log_mel, whisper
from model.audio.log_mel import WINDOW_FRAMES
from model.motion.audio_encoder import WhisperBlocks
from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Floats
from training.whisper_init import init_from_whisper

BLOCKS = 2


def made_up_whisper() -> whisper.WhisperEncoder:
    torch.manual_seed(0)
    net = whisper.WhisperEncoder(whisper.WhisperConfig(layers=BLOCKS)).eval().requires_grad_(False)
    net.positions.normal_(0, 0.1)
    for p in net.parameters():
        p.copy_(p.half())
    net.positions.copy_(net.positions.half())
    return net


def write_ctranslate2(path: Path, net: whisper.WhisperEncoder) -> None:
    """In the layout of CTranslate2's own converter (`model_spec.py`, binary version 6)."""
    own = net.state_dict()
    tensors: dict[str, Tensor] = {"position_encodings/encodings": own["positions"]}
    for ours, theirs in (("conv_1", "conv1"), ("conv_2", "conv2")):
        tensors |= {f"{theirs}/{kind}": own[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for i in range(BLOCKS):
        block, layer = f"blocks.{i}", f"layer_{i}"
        no_bias = torch.zeros_like(own[f"{block}.query.bias"])
        for kind in ("weight", "bias"):
            parts = [own.get(f"{block}.{n}.{kind}", no_bias) for n in ("query", "key", "value")]
            tensors[f"{layer}/self_attention/linear_0/{kind}"] = torch.cat(parts)
            tensors[f"{layer}/self_attention/linear_1/{kind}"] = own[f"{block}.out.{kind}"]
            tensors[f"{layer}/ffn/linear_0/{kind}"] = own[f"{block}.expand.{kind}"]
            tensors[f"{layer}/ffn/linear_1/{kind}"] = own[f"{block}.shrink.{kind}"]
        for norm, place in (("attention_norm", "self_attention"), ("feed_norm", "ffn")):
            tensors[f"{layer}/{place}/layer_norm/gamma"] = own[f"{block}.{norm}.weight"]
            tensors[f"{layer}/{place}/layer_norm/beta"] = own[f"{block}.{norm}.bias"]

    def text(words: str) -> bytes:
        return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"

    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + text("WhisperSpec"))
        file.write(struct.pack("<II", 3, len(tensors)))
        for name, tensor in tensors.items():
            file.write(text(f"encoder/{name}") + struct.pack("<B", tensor.ndim))
            file.write(struct.pack(f"<{tensor.ndim}I", *tensor.shape))
            raw = tensor.half().numpy().tobytes()
            file.write(struct.pack("<BI", 4, len(raw)) + raw)


@pytest.fixture(scope="module")
def model_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "model.bin"
    write_ctranslate2(path, made_up_whisper())
    return path


def babble(seed: int, frames: int) -> Floats:
    """Noise through a few moving bands, with pauses: spectra as varied as speech's."""
    random = np.random.default_rng(seed)
    samples = np.zeros(frames * SAMPLES_PER_FRAME)
    t = np.arange(len(samples)) / SAMPLE_RATE
    for base in (150, 500, 1500, 2500, 4000, 6000):
        hertz = base * (1 + 0.2 * np.sin(2 * np.pi * random.uniform(1, 4) * t))
        level = np.maximum(0, np.sin(2 * np.pi * random.uniform(1, 3) * t + random.uniform(0, 6)))
        samples += 0.05 * level * np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)
    return (samples + 1e-3 * random.standard_normal(len(samples))).astype(np.float32)


def test_the_encoder_starts_as_whisper(model_bin: Path) -> None:
    encoder = WhisperBlocks(32, BLOCKS).eval().requires_grad_(False)
    init_from_whisper(encoder, model_bin, [babble(seed, 200) for seed in range(8)])
    sound = babble(100, WINDOW_FRAMES)
    power = log_mel.power_spectrum(np.pad(sound, log_mel.PAST_SAMPLES))
    ours = encoder.encoder.depths(torch.from_numpy(log_mel.log_mel(power)).T[None])[-1][0]
    half = log_mel.HOP_SAMPLES // 2
    mel = whisper.log_mel(np.pad(sound[half:], (0, half)))
    theirs = made_up_whisper()(mel[None])[0, :, -1]
    inside = slice(2, -2)  # beyond a window's ends Whisper pads with zeros of its own scale
    away = (ours - theirs)[inside].std() / (theirs - theirs.mean(0))[inside].std()
    assert away < 0.15


def test_a_file_that_is_not_whisper_is_rejected(tmp_path: Path, model_bin: Path) -> None:
    encoder = WhisperBlocks(32, BLOCKS)
    with pytest.raises(ValueError, match="no file"):
        init_from_whisper(encoder, tmp_path / "none.bin", [babble(0, 50)])
    for content in (b"", b"something else altogether", model_bin.read_bytes()[:5000]):
        (tmp_path / "other.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"no model.bin|no Whisper"):
            init_from_whisper(encoder, tmp_path / "other.bin", [babble(0, 50)])
    with pytest.raises(ValueError, match="layer_2"):
        init_from_whisper(WhisperBlocks(32, BLOCKS + 1), model_bin, [babble(0, 50)])

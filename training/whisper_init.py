"""Initialise the motion networks' audio encoder from the first blocks of Whisper tiny's.

Whisper takes 80 log-mel bands on Slaney's scale, our rows have 64 on another. Each of Whisper's
bands is very nearly a linear function of ours, fitted on speech by least squares. That function and
Whisper's first convolution make one convolution.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from model.audio import log_mel, whisper
from model.motion.audio_encoder import WhisperBlocks
from model.types import Floats
from training.linear import ridge

_SPEC = "WhisperSpec"
_FLOAT16 = 4  # CTranslate2's type number
_RIDGE = 1e-6  # per sample


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The half-precision tensors of CTranslate2's ``model.bin``, by name.

    Raises ``ValueError`` if the file is missing or holds no Whisper in half precision.
    """
    if not path.is_file():
        raise ValueError(f"no file at {path}, expected CTranslate2's model.bin of Whisper tiny")
    tensors = {}
    with path.open("rb") as file:
        try:
            file.read(4)
            name = _text(file)
            _, count = struct.unpack("<II", file.read(8)) if name == _SPEC else (0, 0)
            for _ in range(count):
                name, rank = _text(file), file.read(1)[0]
                shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
                kind, size = struct.unpack("<BI", file.read(5))
                raw = file.read(size)
                if kind == _FLOAT16:
                    array = np.frombuffer(raw, np.float16).astype(np.float32)
                    tensors[name] = torch.from_numpy(array.reshape(shape))
        except (struct.error, ValueError, IndexError) as error:
            raise ValueError(f"{path} is no model.bin of CTranslate2: {error}") from error
    if not tensors:
        raise ValueError(f"{path} holds no Whisper in half precision")
    return tensors


def _text(file: BinaryIO) -> str:
    (size,) = struct.unpack("<H", file.read(2))
    return file.read(size)[:-1].decode()


def encoder_state(foreign: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The state of a `model.audio.whisper.WhisperEncoder` with ``blocks`` blocks.

    ``foreign``: tensors by CTranslate2's names. Raises ``ValueError`` if one is missing.
    """
    names = {"conv_1": "conv1", "conv_2": "conv2"}
    own = {"positions": "position_encodings/encodings"}
    for i in range(blocks):
        block, layer = f"blocks.{i}", f"layer_{i}"
        names[f"{block}.out"] = f"{layer}/self_attention/linear_1"
        names[f"{block}.expand"] = f"{layer}/ffn/linear_0"
        names[f"{block}.shrink"] = f"{layer}/ffn/linear_1"
        for norm, place in (("attention_norm", "self_attention"), ("feed_norm", "ffn")):
            own[f"{block}.{norm}.weight"] = f"{layer}/{place}/layer_norm/gamma"
            own[f"{block}.{norm}.bias"] = f"{layer}/{place}/layer_norm/beta"
    for name, place in names.items():
        own |= {f"{name}.{kind}": f"{place}/{kind}" for kind in ("weight", "bias")}
    try:
        state = {name: foreign[f"encoder/{place}"] for name, place in own.items()}
        for i in range(blocks):
            for kind in ("weight", "bias"):
                whole = foreign[f"encoder/layer_{i}/self_attention/linear_0/{kind}"]
                for name, part in zip(("query", "key", "value"), whole.chunk(3), strict=True):
                    if (name, kind) != ("key", "bias"):  # Whisper's keys have no bias
                        state[f"blocks.{i}.{name}.{kind}"] = part
    except KeyError as error:
        raise ValueError(f"this Whisper has no {error}") from error
    return state


def band_projection(speech: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """Weights (80, 64) and offsets (80,) from our bands to Whisper's, fitted on ``speech``."""
    ours, theirs = [], []
    # Our frames are centred half a hop after their start, Whisper's on it.
    half = log_mel.HOP_SAMPLES // 2
    for samples in speech:
        power = log_mel.power_spectrum(np.pad(samples, log_mel.PAST_SAMPLES))
        ours.append(log_mel.log_mel(power))
        theirs.append(whisper.log_mel(np.pad(samples[half:], (0, half))).numpy().T)
    x = np.concatenate(ours).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = ridge(x, np.concatenate(theirs), _RIDGE * len(x))
    fitted = torch.from_numpy(weights.T).float()
    return fitted[:, :-1], fitted[:, -1]


def init_from_whisper(encoder: WhisperBlocks, path: Path, speech: Sequence[Floats]) -> None:
    """Load Whisper's weights from ``path`` (`read_ctranslate2`) into ``encoder``.

    Its token layers, which Whisper lacks, keep their weights. ``speech``: samples (N,) at 16 kHz
    for `band_projection`. Raises ``ValueError`` for a file that is no Whisper of that width.
    """
    own = encoder.encoder
    state = encoder_state(read_ctranslate2(path), own.config.layers)
    slopes, offsets = band_projection(speech)
    kernel = state["conv_1.weight"]
    if kernel.shape[:2] != (own.config.width, len(slopes)):
        raise ValueError(f"{path} has states of {len(kernel)}, expected {own.config.width}")
    state["conv_1.bias"] = state["conv_1.bias"] + torch.einsum("obk,b->o", kernel, offsets)
    state["conv_1.weight"] = torch.einsum("obk,bm->omk", kernel, slopes)
    state["positions"] = state["positions"][: own.config.positions]
    own.load_state_dict(state)

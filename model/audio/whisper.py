"""Speech as states of Whisper's encoder, the audio features of the video networks (2212.04356).

EchoMimic (arXiv 2407.08136) looks at every depth of the encoder at once: the states after the
positions are added and after each block, before the last norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn
from torch.nn import functional as F

from model.audio.frontend import samples_per_row
from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Floats

HOP_SAMPLES = 160  # a mel frame: 10 ms
FFT_SAMPLES = 400
STATES_PER_SECOND = 50  # the encoder halves the mel frames
STATES_BEFORE, STATES_AFTER = 4, 5  # of a video frame's own state


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes of the encoder; the defaults are Whisper tiny's. ``positions``: states it can take."""

    mels: int = 80
    positions: int = 1500
    width: int = 384
    heads: int = 6
    layers: int = 4


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        q, k, v = (
            layer(normed).unflatten(2, (self._heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return torch.as_tensor(x + self.shrink(F.gelu(self.expand(self.feed_norm(x)))))


class WhisperEncoder(nn.Module):
    """The encoder without its last norm, which these features never pass through."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_1 = nn.Conv1d(config.mels, config.width, 3, padding=1)
        self.conv_2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.positions: Tensor
        self.register_buffer("positions", torch.zeros(config.positions, config.width))
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.heads) for _ in range(config.layers)
        )

    def forward(self, mel: Tensor) -> Tensor:
        """``mel`` (B, mels, 2 T) of `log_mel` → (B, T, layers + 1, width), T ≤ positions."""
        return torch.stack(self.depths(mel), dim=2)

    def depths(self, mel: Tensor) -> list[Tensor]:
        """The states (B, T, width) before the first block and after each."""
        x = F.gelu(self.conv_1(mel.to(self.conv_1.weight.dtype)))
        x = F.gelu(self.conv_2(x)).transpose(1, 2)
        if x.shape[1] > len(self.positions):
            raise ValueError(f"{x.shape[1]} states of sound, allowed: {len(self.positions)}")
        x = x + self.positions[: x.shape[1]].to(x.dtype)
        states = [x]
        for block in self.blocks:
            x = block(x)
            states.append(x)
        return states


def log_mel(samples: Floats, mels: int = 80) -> Tensor:
    """(N,) samples at 16 kHz → (mels, N // 160): Whisper's input (arXiv 2212.04356, 2.2).

    Levels are taken from the loudest frame, 8 orders of magnitude down, then scaled to about ±1.
    """
    if samples.ndim != 1 or len(samples) <= FFT_SAMPLES // 2:
        raise ValueError(
            f"samples have shape {samples.shape}, expected (N,) with N > {FFT_SAMPLES // 2}"
        )
    spectrum = torch.stft(
        torch.from_numpy(np.ascontiguousarray(samples, np.float32)),
        FFT_SAMPLES,
        HOP_SAMPLES,
        window=torch.hann_window(FFT_SAMPLES),
        return_complex=True,
    )[:, : len(samples) // HOP_SAMPLES]
    power = torch.tensor(mel_filters(mels)) @ spectrum.abs() ** 2
    levels = power.clamp(min=1e-10).log10()
    return (torch.maximum(levels, levels.max() - 8.0) + 4.0) / 4.0


@cache
def mel_filters(mels: int) -> Floats:
    """(mels, 201) triangles of equal area on Slaney's scale: linear to 1 kHz, then logarithmic."""
    top = _slaney(np.array(SAMPLE_RATE / 2.0))
    edges = _slaney_hertz(np.linspace(0.0, float(top), mels + 2))
    bins = np.fft.rfftfreq(FFT_SAMPLES, 1.0 / SAMPLE_RATE)[None]
    low, middle, high = (edges[i : i + mels, None] for i in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    result = triangles.astype(np.float32)
    result.setflags(write=False)
    return result


_LINEAR_HZ, _LINEAR_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


def _slaney(hertz: np.ndarray) -> np.ndarray:
    above = np.maximum(hertz, _LINEAR_HZ) / _LINEAR_HZ
    return np.where(
        hertz < _LINEAR_HZ,
        hertz * _LINEAR_MEL / _LINEAR_HZ,
        _LINEAR_MEL + np.log(above) / _LOG_STEP,
    )


def _slaney_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(
        mel < _LINEAR_MEL,
        mel * _LINEAR_HZ / _LINEAR_MEL,
        _LINEAR_HZ * np.exp(_LOG_STEP * (mel - _LINEAR_MEL)),
    )


def speech_states(encoder: WhisperEncoder, samples: Floats) -> Tensor:
    """(N,) samples at 16 kHz → (N // 320, layers + 1, width) states, at 50 Hz.

    Long speech is encoded in pieces of the encoder's length (30 s); the last one is filled up
    with zeros after scaling, as MuseTalk does, whose features EchoMimic took over.
    """
    mel = log_mel(samples, encoder.config.mels)
    length = 2 * encoder.config.positions
    pieces = []
    with torch.no_grad():
        for start in range(0, mel.shape[1], length):
            piece = mel[:, start : start + length]
            states = encoder(F.pad(piece, (0, length - piece.shape[1]))[None])[0]
            pieces.append(states[: piece.shape[1] // 2])
    return torch.cat(pieces)


def frame_count(states: int, fps: float) -> int:
    """Video frames that EchoMimic makes of so many states: until one starts beyond the end."""
    frames = 1
    while int((frames - 1) * STATES_PER_SECOND / fps) <= states:
        frames += 1
    return frames


def state_indices(states: int, frames: int, fps: float) -> Tensor:
    """(frames, 10) indices of each video frame's states: four before its own, five after.

    Beyond either end the last state there is repeated.
    """
    if states < 1:
        raise ValueError(f"states = {states}, expected at least 1")
    centres = torch.tensor([int(i * STATES_PER_SECOND / fps) for i in range(frames)])
    offsets = torch.arange(-STATES_BEFORE, STATES_AFTER + 1)
    return (centres[:, None] + offsets).clamp(0, states - 1)


def audio_tokens(states: Tensor, fps: float, frames: int | None = None) -> Tensor:
    """``states`` (T, D, W) → (frames, 10 · D, W), in time first; all frames when None."""
    count = frame_count(len(states), fps) if frames is None else frames
    return states[state_indices(len(states), count, fps)].flatten(1, 2)


PAST_FRAMES = 24  # a second, together with the frame itself and those after
# Five states after the frame's own end 140 ms after its start; spectra and convolutions see 30 ms
# more: three frames beyond it hold all that.
FUTURE_FRAMES = 3
STATES_PER_FRAME = STATES_PER_SECOND // FPS


class WhisperRows:
    """Whisper as a stream: an `AudioFrontend` of EchoMimic's (10 · depths, width) tokens a frame.

    Whisper encodes thirty seconds at once and scales levels by the loudest moment; a stream can
    wait for neither. So each row is computed from a fixed stretch of sound around its frame, placed
    at the encoder's first positions. That is not what `speech_states` gives for a whole speech, so
    a student is distilled on these rows; its teacher may use the whole speech.

    ``past_frames`` of sound before the frame are encoded. Rows are rounded to float16, in which
    they are kept. Each row is one pass of the encoder, on its device.
    """

    kept_as: DTypeLike = np.float16

    def __init__(self, encoder: WhisperEncoder, past_frames: int = PAST_FRAMES) -> None:
        """Raises ``ValueError`` for an encoder that cannot take so much sound."""
        config = encoder.config
        states = (past_frames + 1 + FUTURE_FRAMES) * STATES_PER_FRAME
        least = -(-STATES_BEFORE // STATES_PER_FRAME)
        if past_frames < least or states > config.positions:
            raise ValueError(
                f"past_frames = {past_frames} makes {states} states, expected {least} frames or "
                f"more, and at most the encoder's {config.positions} states"
            )
        self._encoder = encoder.eval().requires_grad_(False)
        self._own = past_frames * STATES_PER_FRAME
        depths = config.layers + 1
        self.row_shape: tuple[int, ...] = (
            (STATES_BEFORE + 1 + STATES_AFTER) * depths,
            config.width,
        )
        self.past_samples = past_frames * SAMPLES_PER_FRAME
        self.future_samples = FUTURE_FRAMES * SAMPLES_PER_FRAME

    def row(self, samples: Floats) -> Floats:
        """See `model.audio.frontend.AudioFrontend.row`."""
        if samples.shape != (samples_per_row(self),):
            raise ValueError(
                f"samples have shape {samples.shape}, expected ({samples_per_row(self)},)"
            )
        device = self._encoder.positions.device
        with torch.inference_mode():
            mel = log_mel(samples, self._encoder.config.mels)[None].to(device)
            states = self._encoder(mel)[0, self._own - STATES_BEFORE :]
            tokens = states[: STATES_BEFORE + 1 + STATES_AFTER].flatten(0, 1)
        return np.asarray(tokens.half().float().cpu().numpy(), np.float32)

    def silence(self) -> Floats:
        """See `model.audio.frontend.AudioFrontend.silence`."""
        return self._silence

    @cached_property
    def _silence(self) -> Floats:
        made = self.row(np.zeros(samples_per_row(self), np.float32))
        made.setflags(write=False)
        return made

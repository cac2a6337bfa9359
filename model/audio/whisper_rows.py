"""Whisper's states as a stream of rows, for the video networks.

Whisper encodes thirty seconds at once, and scales their levels by the loudest moment: no stream can
wait for either. So each row is computed from a fixed stretch of sound around its frame, placed at
the encoder's first positions: a pure function of those samples, equal for any chunking. It is not
what `model.audio.whisper.speech_states` gives for the whole speech, so a student is to be distilled
on rows like these; its teacher may hear the speech as it always did.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import DTypeLike

from model.audio.frontend import samples_per_row
from model.audio.whisper import (
    STATES_AFTER,
    STATES_BEFORE,
    STATES_PER_SECOND,
    WhisperEncoder,
    log_mel,
)
from model.types import FPS, SAMPLES_PER_FRAME, Floats

PAST_FRAMES = 24  # a second, together with the frame itself and those after
# Five states after the frame's own end 140 ms after its start; spectra and convolutions see 30 ms
# more: three frames beyond it hold all that.
FUTURE_FRAMES = 3
STATES_PER_FRAME = STATES_PER_SECOND // FPS


class WhisperRows:
    """A `model.audio.frontend.AudioFrontend`: (10 · depths, width) tokens a frame, as EchoMimic's.

    ``past_frames``: of sound before the frame. Rows have half the precision of their type, in
    which they are kept. One pass of the encoder a row, on its device.
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

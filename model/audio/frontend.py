"""The audio front end: what a frame's sound is to a network, and how many frames a window has.

A row is a pure function of the samples around its frame, so streams of any chunking are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from numpy.typing import DTypeLike

from model.types import FPS, SAMPLES_PER_FRAME, Floats


class AudioFrontend(Protocol):
    """Speech as rows, one a video frame, each computed alone and in one fixed shape."""

    row_shape: tuple[int, ...]
    kept_as: DTypeLike  # holds a row without loss
    past_samples: int  # before the frame's own
    future_samples: int  # after them

    def row(self, samples: Floats) -> Floats:
        """(past_samples + SAMPLES_PER_FRAME + future_samples,) at 16 kHz → ``row_shape``."""
        ...

    def silence(self) -> Floats:
        """The row of digital silence; always the same array, not to be written to."""
        ...


def samples_per_row(frontend: AudioFrontend) -> int:
    """Samples that one row is computed from."""
    return frontend.past_samples + SAMPLES_PER_FRAME + frontend.future_samples


@dataclass(frozen=True)
class AudioWindowSpec:
    """A window has rows of ``past`` frames, of ``hop`` new ones, and of ``lookahead`` beyond."""

    frontend: AudioFrontend
    past: int
    hop: int
    lookahead: int

    def __post_init__(self) -> None:
        if self.past < 0 or self.hop < 1 or self.lookahead < 0:
            raise ValueError(
                f"a window of {self.past}, {self.hop} and {self.lookahead} frames, expected a hop "
                "of 1 or more and the others 0 or more"
            )

    @property
    def frames(self) -> int:
        """Rows of a window."""
        return self.past + self.hop + self.lookahead

    @property
    def future_rows(self) -> int:
        """Rows of a window that are not past."""
        return self.hop + self.lookahead

    @property
    def hop_s(self) -> float:
        """Seconds of video that a window makes."""
        return self.hop / FPS

    @property
    def warmup_windows(self) -> int:
        """Windows after which nothing from before them is in a window any more."""
        rows = self.past + -(-self.frontend.past_samples // SAMPLES_PER_FRAME)
        return -(-rows // self.hop)

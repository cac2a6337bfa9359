"""Decode an uploaded audio file into blocks of mono samples, at two rates at once.

Decoding is block by block, so a long speech needs no more memory than its compressed bytes. What a
file states about itself is not believed: only what is there counts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from media.downmix import Downmix, Limiter
from media.errors import MediaError
from media.formats import parts
from media.survey import Survey
from media.tracks import Chunk, Track, find_track

MODEL_RATE = 16_000
_BLOCK_S = 0.25
_LOWEST_RATE, _HIGHEST_RATE = 4_000, 384_000
_PADDING_S = 0.25  # of encoders, which is counted and then not decoded

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class AudioBlock:
    """A piece of a speech: (N,) samples at the output rate, (M,) at 16 kHz.

    The two resamplers have different delays, so only the sums over all blocks agree in time.
    """

    output: Samples
    model: Samples


class AudioBlocks(Protocol):
    """An iterator over the blocks of a speech that may be closed early, like a generator."""

    def __iter__(self) -> Iterator[AudioBlock]: ...

    def __next__(self) -> AudioBlock: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class DecodedSpeech:
    """``duration_s`` is what was counted, ``None`` if it is not known.

    ``warnings`` name what was repaired, each in one line of ASCII.
    """

    duration_s: float | None
    blocks: AudioBlocks
    warnings: tuple[str, ...] = ()


def decode_audio(blob: bytes, output_rate: int, max_s: float) -> DecodedSpeech:
    """Open a sound file of a promised format; iterating over the blocks decodes it.

    Files that were joined are decoded one after the other. Raises `MediaError`:
    ``unsupported_media`` if nothing in ``blob`` can be decoded, ``empty_audio`` if it has 0 bytes,
    ``too_large`` if it holds more than ``max_s`` seconds. The blocks raise the same errors if only
    decoding reveals them.
    """
    if not blob:
        raise MediaError("empty_audio", "the audio file has 0 bytes")
    tracks = _tracks(blob, max_s + _PADDING_S)
    found = sum((track.survey for track in tracks), Survey())
    if found.seconds > max_s + _PADDING_S:
        raise _too_long(found.seconds, max_s)
    bits, warnings = found.integer_bits, tuple[str, ...]()
    if bits:
        warnings = (f"the float samples are integers of {bits + 1} bits; they were scaled",)
    blocks = _resampled(_mono(tracks, scale=2.0**-bits), output_rate, max_s)
    return DecodedSpeech(found.seconds or None, blocks, warnings)


def _tracks(blob: bytes, max_s: float) -> list[Track]:
    """Of each joined file that has one; raises the first one's error if none has."""
    tracks, errors = [], []
    for part in parts(blob):
        try:
            tracks.append(find_track(part, max_s))
        except MediaError as error:
            errors.append(error)
    if not tracks:
        raise errors[0]
    return tracks


def _mono(tracks: list[Track], *, scale: float) -> Iterator[tuple[int, Samples]]:
    """Pieces of a quarter of a second, each with its rate."""
    limit, mix, channels = Limiter(), Downmix(()), tuple[str, ...]()
    for chunk in _gathered(chunk for track in tracks for chunk in track.chunks()):
        if chunk.channels != channels:
            channels, mix = chunk.channels, Downmix(chunk.channels)
        yield chunk.rate, limit(mix(chunk.samples * np.float32(scale)))
    packets = sum(track.survey.packets for track in tracks)
    if packets and not channels:
        raise MediaError(
            "unsupported_media", f"none of the {packets} packets of sound could be decoded"
        )


def _gathered(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Joined while they are shorter than a block and have the same rate and channels."""
    waiting: list[Chunk] = []
    count = 0
    for chunk in chunks:
        last = waiting[-1] if waiting else chunk
        if count >= _BLOCK_S * last.rate or not chunk.like(last):
            yield _joined(waiting)
            waiting, count = [], 0
        waiting.append(chunk)
        count += chunk.samples.shape[1]
    if waiting:
        yield _joined(waiting)


def _joined(chunks: list[Chunk]) -> Chunk:
    samples = np.concatenate([chunk.samples for chunk in chunks], axis=1)
    return replace(chunks[0], samples=samples)


def _resampled(
    pieces: Iterator[tuple[int, Samples]], output_rate: int, max_s: float
) -> Generator[AudioBlock, None, None]:
    output, model = _Resampler(output_rate), _Resampler(MODEL_RATE)
    seconds = 0.0
    for rate, mono in pieces:
        if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
            if seconds:
                continue  # a damaged frame
            raise MediaError(
                "unsupported_media",
                f"the audio has {rate} samples a second; "
                f"{_LOWEST_RATE} to {_HIGHEST_RATE} are allowed",
            )
        seconds += len(mono) / rate
        if seconds > max_s:
            raise _too_long(seconds, max_s)
        yield AudioBlock(output(mono, rate), model(mono, rate))
    end = AudioBlock(output.finish(), model.finish())
    if not model.made:
        raise MediaError(
            "empty_audio", f"the audio lasts {seconds:g} s, expected a sample at least"
        )
    yield end


class _Resampler:
    """Sound of any rates, one after the other, at one rate; exact in the sum of all lengths."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._source_rate = 0
        self._stream: soxr.ResampleStream | None = None
        self._wanted = 0.0
        self.made = 0  # samples

    def __call__(self, mono: Samples, rate: int) -> Samples:
        end = self.finish() if rate != self._source_rate else np.zeros(0, np.float32)
        if self._stream is None:
            self._source_rate = rate
            self._stream = soxr.ResampleStream(rate, self._rate, 1, dtype="float32")
        self._wanted += len(mono) * self._rate / rate
        piece: Samples = self._stream.resample_chunk(np.ascontiguousarray(mono))
        self.made += len(piece)
        return np.concatenate([end, piece]) if len(end) else piece

    def finish(self) -> Samples:
        """What the filter still holds."""
        rest: Samples = np.zeros(0, np.float32)
        if self._stream is not None:
            rest = self._stream.resample_chunk(rest, last=True)
            self._stream = None
            left = max(0, round(self._wanted) - self.made)
            rest = np.pad(rest[:left], (0, max(0, left - len(rest))))
            self.made += len(rest)
        return rest


def _too_long(seconds: float, max_s: float) -> MediaError:
    return MediaError(
        "too_large", f"the audio is {seconds:.1f} s long; at most {max_s:g} s are allowed"
    )

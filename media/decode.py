"""Decode an uploaded audio file into blocks of mono samples, at two rates at once.

Decoding is block by block, so a long speech needs no more memory than its compressed bytes.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import av
import numpy as np
import soundfile
import soxr
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from media.errors import MediaError

MODEL_RATE = 16_000
_BLOCK_S = 0.25
_LOWEST_RATE, _HIGHEST_RATE = 4_000, 384_000
_FORMATS = "WAV, FLAC, MP3, OGG, M4A or WebM"

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
    """``duration_s`` is the container's, ``None`` if it states none."""

    duration_s: float | None
    blocks: AudioBlocks


@dataclass(frozen=True)
class _Source:
    rate: int
    duration_s: float | None
    blocks: Iterator[Samples]  # mono at ``rate``


def decode_audio(blob: bytes, output_rate: int, max_s: float) -> DecodedSpeech:
    """Open a WAV, FLAC, MP3, OGG, M4A or WebM file; iterating over the blocks decodes it.

    Raises `MediaError`: ``unsupported_media`` if nothing in ``blob`` can be decoded,
    ``empty_audio`` if its header states no samples, ``too_large`` if it states more than ``max_s``
    seconds. The blocks raise the same errors if only the data reveal them.
    """
    if not blob:
        raise MediaError("empty_audio", "the audio file has 0 bytes")
    source = _open_container(blob) if _is_container(blob) else _open_soundfile(blob)
    if not _LOWEST_RATE <= source.rate <= _HIGHEST_RATE:
        raise MediaError(
            "unsupported_media",
            f"the audio has {source.rate} samples a second; "
            f"{_LOWEST_RATE} to {_HIGHEST_RATE} are allowed",
        )
    if source.duration_s is not None:
        _check_length(source.duration_s, max_s)
    return DecodedSpeech(source.duration_s, _resampled(source, output_rate, max_s))


def _check_length(duration_s: float, max_s: float) -> None:
    if duration_s > max_s:
        raise MediaError(
            "too_large", f"the audio is {duration_s:.1f} s long; at most {max_s:g} s are allowed"
        )


def _resampled(
    source: _Source, output_rate: int, max_s: float
) -> Generator[AudioBlock, None, None]:
    output = soxr.ResampleStream(source.rate, output_rate, 1, dtype="float32")
    model = soxr.ResampleStream(source.rate, MODEL_RATE, 1, dtype="float32")
    samples = model_samples = 0
    for mono in source.blocks:
        samples += len(mono)
        _check_length(samples / source.rate, max_s)
        # A float file may hold anything; one NaN would spread through both resamplers.
        clean = np.clip(np.nan_to_num(mono, posinf=1.0, neginf=-1.0), -1.0, 1.0)
        block = AudioBlock(output.resample_chunk(clean), model.resample_chunk(clean))
        model_samples += len(block.model)
        yield block
    rest = np.zeros(0, np.float32)
    end = AudioBlock(output.resample_chunk(rest, last=True), model.resample_chunk(rest, last=True))
    if not model_samples + len(end.model):
        raise MediaError(
            "empty_audio", f"the audio holds {samples} samples, less than one at {MODEL_RATE} Hz"
        )
    yield end


def _is_container(blob: bytes) -> bool:
    return _container_format(blob) is not None


def _container_format(blob: bytes) -> str | None:
    """FFmpeg's demuxer by name: left to guess, FFmpeg would follow playlists to other files."""
    if blob[4:8] == b"ftyp":
        return "mov"
    if blob[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    return None


def _open_soundfile(blob: bytes) -> _Source:
    try:
        file = soundfile.SoundFile(io.BytesIO(blob))
    except soundfile.LibsndfileError as error:
        raise MediaError(
            "unsupported_media",
            f"no sound could be decoded ({_FORMATS} are read): {error.error_string}",
        ) from error
    if file.frames == 0:
        raise MediaError("empty_audio", "the audio holds 0 samples")
    return _Source(file.samplerate, file.frames / file.samplerate, _read_soundfile(file))


def _read_soundfile(file: soundfile.SoundFile) -> Iterator[Samples]:
    size = max(1, int(file.samplerate * _BLOCK_S))
    with file:
        while True:
            try:
                block = file.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise MediaError(
                    "unsupported_media", f"the audio is broken: {error.error_string}"
                ) from error
            if not len(block):
                return
            yield block.mean(axis=1, dtype=np.float32)


def _open_container(blob: bytes) -> _Source:
    try:
        container = av.open(io.BytesIO(blob), "r", format=_container_format(blob))
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            "unsupported_media", f"no sound could be decoded ({_FORMATS} are read): {error}"
        ) from error
    # A track whose codec is unknown has no rate.
    rate = getattr(container.streams.audio[0], "rate", 0) if container.streams.audio else 0
    if not rate:
        container.close()
        raise MediaError(
            "unsupported_media", f"no track of the {container.format.name} file can be decoded"
        )
    duration_s = container.duration / av.time_base if container.duration else None
    return _Source(rate, duration_s, _read_container(container, rate))


def _read_container(container: av.container.InputContainer, rate: int) -> Iterator[Samples]:
    mix = AudioResampler(format="flt", layout="mono", rate=rate)
    with container:
        try:
            for frame in container.decode(audio=0):
                for mono in mix.resample(frame):
                    yield mono.to_ndarray()[0]
            for mono in mix.resample(None):
                yield mono.to_ndarray()[0]
        except av.FFmpegError as error:
            raise MediaError("unsupported_media", f"the audio is broken: {error}") from error

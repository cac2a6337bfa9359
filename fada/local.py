"""Animation in this process, without a broker, by the worker's code (`server.worker.session`)."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tqdm import tqdm

from media.decode import DecodedSpeech
from media.fmp4 import SAMPLE_RATE
from model.types import FPS, Reference
from server.api.protocol import AnimationOptions
from server.errors import ServiceError
from server.settings import Settings
from server.worker.batcher import Batcher
from server.worker.loading import load_pipelines, model_names
from server.worker.portraits import encode_portrait
from server.worker.sandbox import Sandbox
from server.worker.session import VideoFragment, VideoSession, VideoStarted
from server.worker.speech import FileSpeech

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline


def animate(
    settings: Settings, portrait: Path, audio: Path, out: BinaryIO, options: AnimationOptions
) -> str:
    """Write the video to ``out``; returns its figures as text.

    Raises `ServiceError` for input that cannot be used, `SetupError` for a student that cannot,
    ``OSError`` for files that cannot be read.
    """
    blob, sound = portrait.read_bytes(), audio.read_bytes()
    known = model_names(settings)
    name = known[0] if options.model is None else options.model
    if name not in known:
        allowed = ", ".join(known)
        raise ServiceError("invalid_option", f"model is {name!r}; it must be one of {allowed}")
    seed = secrets.randbelow(2**63) if options.seed is None else options.seed
    with (
        closing(Sandbox()) as sandbox,
        _opened(sandbox, sound, settings.max_audio_s) as speech,
    ):
        picture = sandbox.picture(blob)
        pipeline = load_pipelines(settings, [name])[name]
        started_s = time.monotonic()
        reference = encode_portrait(pipeline, picture)
        opened = FileSpeech.open(speech, pipeline.window_spec, options)
        duration_s, frames = asyncio.run(_make(pipeline, reference, opened, seed, out=out))
        took_s = time.monotonic() - started_s
    return (
        f"{duration_s:.2f} s, {frames} frames, seed {seed}; made in "
        f"{took_s:.2f} s, {duration_s / took_s:.1f} times real time"
    )


@contextmanager
def _opened(sandbox: Sandbox, blob: bytes, max_s: float) -> Iterator[DecodedSpeech]:
    speech = sandbox.speech(blob, SAMPLE_RATE, max_s)
    with closing(speech.blocks):
        yield speech


async def _make(
    pipeline: AvatarPipeline, reference: Reference, speech: FileSpeech, seed: int, *, out: BinaryIO
) -> tuple[float, int]:
    """The seconds and frames of the video."""
    total = None if speech.total_s is None else round(speech.total_s * FPS)
    quiet = not sys.stderr.isatty()
    with (
        ThreadPoolExecutor(1) as network,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        tqdm(total=total, unit="frame", disable=quiet) as bar,
    ):
        batcher = Batcher(pipeline, network)
        session = VideoSession(batcher, reference, speech, seed=seed, pool=pool)
        async with batcher.running(), aclosing(session):
            async for event, _ in session:
                if isinstance(event, VideoStarted | VideoFragment):
                    out.write(event.data)
                if isinstance(event, VideoFragment):
                    bar.update(event.frames)
        return session.duration_s, session.frames

"""Whether admitted sessions keep real time, and whether the machine's room is used.

python bench/admission.py --starts 20 --clients 12 --seconds 120 --portraits DIR

Each start runs a service of its own. All clients come at once, each with a portrait of its own, and
speak without a pause until the end; one that is refused tries again every two seconds. A sweep with
admission overridden then finds how many sessions the machine can bear at the full frame rate: each
keeps at least 99 % of real time and stalls for at most 0.3 s. Exit status 0: no admitted session
fell below that, and at least 90 % of what the machine can bear was admitted in every start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from fada_client import Client
from PIL import Image, ImageOps

import server
from bench.live.figures import CUSHION_S, mic_to_fragment, quantiles
from bench.live.report import processor
from bench.live.service import counted, own_service
from bench.live.session import Record, Voice, hold
from server.process import usable_cores
from server.supervisor import worker_count

EXAMPLES = Path(server.__file__).parent / "static" / "examples"
REAL_TIME, STALL_S, USED = 0.99, 0.3, 0.9
_RETRY_S, _APART_S = 2.0, 0.05
_LATE_S = 20.0  # after the last sound: far behind real time
_SETTLE_S = 3.0  # of a session: its portrait is prepared meanwhile
_SHIFT = 4  # pixels by which copies of one portrait differ


@dataclass(frozen=True)
class Kept:
    """How one admitted session did: its share of real time, longest stall and p95 latency."""

    real_time: float
    stall_s: float
    p95_s: float

    @property
    def good(self) -> bool:
        return self.real_time >= REAL_TIME and self.stall_s <= STALL_S


@dataclass(frozen=True)
class Start:
    """The sessions that one start admitted, how many of them broke, how many got no place, and the
    share of the video that had half the frames."""

    kept: tuple[Kept, ...]
    broken: int
    refused: int
    half_rate: float = 0.0

    @property
    def good(self) -> bool:
        return not self.broken and all(one.good for one in self.kept)

    def __str__(self) -> str:
        text = f"{len(self.kept):3} admitted, {self.refused} refused, {self.broken} broken"
        if not self.kept:
            return text
        return (
            f"{text}; real time {min(k.real_time for k in self.kept):.3f}, "
            f"longest stall {max(k.stall_s for k in self.kept):.2f} s, "
            f"p95 {max(k.p95_s for k in self.kept) * 1000:.0f} ms (the worst session's); "
            f"{self.half_rate:.1%} at half the frame rate"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--sweep-seconds", type=float, default=40.0)
    parser.add_argument("--sweeps", type=int, default=3, help="0: admission alone")
    parser.add_argument("--workers", type=int, default=worker_count(None, usable_cores()))
    parser.add_argument("--portraits", type=Path, default=EXAMPLES, help="folder of pictures")
    parser.add_argument("--voice", type=Path, default=EXAMPLES / "speech.wav", help="mono WAV")
    options = parser.parse_args()
    voice = Voice.read(options.voice)
    print(f"{processor()}, {options.workers} workers", flush=True)
    with distinct(options.portraits, options.clients) as portraits:
        starts = []
        for number in range(1, options.starts + 1):
            starts.append(one_start(portraits, voice, options.seconds, options.workers))
            print(f"start {number:2}: {starts[-1]}", flush=True)
        good = all(start.good for start in starts)
        if options.sweeps:
            found = [
                bearable(portraits, voice, options.sweep_seconds, options.workers)
                for _ in range(options.sweeps)
            ]
            bears, fewest = median(found), min(len(start.kept) for start in starts)
            print(f"the machine bears {found}, median {bears:g}; the fewest admitted: {fewest}")
            good = good and fewest >= USED * bears
    sys.exit(0 if good else 1)


def one_start(portraits: Sequence[Path], voice: Voice, seconds: float, workers: int) -> Start:
    """All clients at once, at a service that has just started."""
    with own_service(len(portraits), workers) as service, Client(service.url) as client:
        avatars = [client.create_avatar(portrait).avatar_id for portrait in portraits]
        start = asyncio.run(_all(service.url, avatars, voice, seconds))
        made_s = counted(service.url, "fada_video_seconds_total")
        half_s = counted(service.url, "fada_half_rate_video_seconds_total")
        return replace(start, half_rate=half_s / made_s if made_s else 0.0)


def bearable(portraits: Sequence[Path], voice: Voice, seconds: float, workers: int) -> int:
    """The most sessions that all keep real time where every one is admitted."""
    os.environ |= {"FADA_PIPELINE": "bench.admission:load_without_admission"}
    os.environ |= {"FADA_MODELS": "motion-fast"}
    try:
        with own_service(len(portraits), workers) as service, Client(service.url) as client:
            avatars = [client.create_avatar(portrait).avatar_id for portrait in portraits]
            for sessions in range(1, len(avatars) + 1):
                start = asyncio.run(_all(service.url, avatars[:sessions], voice, seconds))
                print(f"  sweep: {start}", flush=True)
                if not start.good:
                    return sessions - 1
            return len(avatars)
    finally:
        del os.environ["FADA_PIPELINE"], os.environ["FADA_MODELS"]


def load_without_admission(name: str) -> object:
    """A pipeline, in a worker that has a place for every session and draws every frame."""
    from engines.student_engines import StudentEngines
    from model import models
    from server.worker.capacity import Capacity

    Capacity.places = lambda self, taken: self.max_sessions  # type: ignore[method-assign]
    Capacity.must_catch_up = lambda self, late_s: False  # type: ignore[method-assign]
    engines = StudentEngines()
    loaded = models.load(
        models.Choice((name,)), motion_engine=engines.motion, stored_engine=engines.stored
    )
    return loaded[name]


@contextmanager
def distinct(folder: Path, count: int) -> Iterator[list[Path]]:
    """``count`` different portraits: those in ``folder``, then copies, mirrored and cropped."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"no pictures in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        made = []
        for number in range(count):
            turn, at = divmod(number, len(found))
            path = Path(scratch) / f"{number}.png"
            with Image.open(found[at]) as picture:
                face = ImageOps.exif_transpose(picture).convert("RGB")
            if turn % 2:
                face = ImageOps.mirror(face)
            edge = _SHIFT * (turn // 2)
            face.crop((edge, edge, face.width, face.height)).save(path)
            made.append(path)
        yield made


async def _all(url: str, avatars: Sequence[str], voice: Voice, seconds: float) -> Start:
    end_s = time.monotonic() + seconds
    records = await asyncio.gather(
        *(
            _client(url, avatar, voice, end_s, number * _APART_S)
            for number, avatar in enumerate(avatars)
        )
    )
    admitted = [record for record in records if record.ready_s is not None]
    whole = [record for record in admitted if record.trouble is None and record.fragments]
    return Start(
        kept=tuple(_kept(record) for record in whole),
        broken=len(admitted) - len(whole),
        refused=len(records) - len(admitted),
    )


async def _client(url: str, avatar: str, voice: Voice, end_s: float, wait_s: float) -> Record:
    """Try until a place is free, then speak until ``end_s``."""
    await asyncio.sleep(wait_s)
    while True:
        left_s = end_s - time.monotonic()
        start = {"avatar_id": avatar, "idle": True}
        try:
            async with asyncio.timeout(max(left_s, 1.0) + _LATE_S):
                record = await hold(url, start, voice, seconds=max(left_s, 1.0))
        except TimeoutError:
            return Record(ready_s=end_s, trouble="late")
        if record.ready_s is not None or end_s - time.monotonic() < 2 * _SETTLE_S:
            return record
        await asyncio.sleep(_RETRY_S)


def _kept(record: Record) -> Kept:
    """Of the fragments after the first seconds, in which the session is prepared."""
    begin_s = record.fragments[0].at_s + _SETTLE_S
    some = [one for one in record.fragments if one.at_s >= begin_s] or record.fragments
    made_s = sum(one.duration_s for one in some[1:])
    took_s = some[-1].at_s - some[0].at_s
    # A player that began with the session, and waits when it runs dry.
    ahead_s, stall_s = CUSHION_S, 0.0
    for before, after in pairwise(record.fragments):
        ahead_s += before.duration_s - (after.at_s - before.at_s)
        if ahead_s < 0:
            stall_s, ahead_s = max(stall_s, -ahead_s), 0.0
    late = quantiles((late_s for at_s, late_s in mic_to_fragment(record) if at_s >= begin_s), (95,))
    return Kept(made_s / took_s if took_s else 1.0, stall_s, late["p95"] if late else 0.0)


if __name__ == "__main__":
    main()

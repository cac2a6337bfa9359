"""Jobs whose workers die at any moment: others resume them, and nothing is lost or repeated."""

from __future__ import annotations

import asyncio
import atexit
import io
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from model.pipeline import AvatarPipeline
from model.types import pack, unpack
from server.api.protocol import AnimationOptions
from server.broker import messages
from server.broker.leases import Claim
from server.errors import ServiceError
from server.worker import jobs
from server.worker.backpressure import JobAborted
from server.worker.capacity import Capacity
from server.worker.checkpoint import unpack_saved
from server.worker.resources import WorkerResources
from server.worker.sandbox import Sandbox
from tests.server.fake_pipeline import FakePipeline
from tests.server.media_files import picture
from tests.server.media_probe import Probe, probe

Entry = tuple[str, messages.AnyCommand]
RATE = 22_050
EASY = Capacity(cores=2.0, window_s=0.01, max_sessions=8)


class Killed(BaseException):
    """Ends a worker as SIGKILL does: no code of a job catches it."""


@cache
def sandbox() -> Sandbox:
    """One for all tests of this file; it ends with the process."""
    made = Sandbox()
    atexit.register(made.close)
    return made


@dataclass
class Tape:
    """The broker's side of one job, in memory; the next worker dies at its ``dies_at``-th event.

    With ``dies_before`` that event is lost. ``sent_after`` holds the commands that are sent right
    after the event of that number.
    """

    parts: dict[str, bytes]
    commands_: list[Entry] = field(default_factory=list)
    sent_after: dict[int, list[messages.LiveCommand]] = field(default_factory=dict)
    events: list[messages.Progress] = field(default_factory=list)
    saved: bytes | None = None
    dies_at: int = 10_000
    dies_before: bool = False
    longest: int = 0
    sent: int = 0

    def send_command(self, command: messages.AnyCommand) -> None:
        self.sent += 1
        self.commands_.append((f"{self.sent}-0", command))

    async def part(self, job_id: str, part: str) -> bytes | None:
        return self.parts.get(part)

    async def has_reader(self, claim: Claim) -> bool:
        return True

    async def commands(self, job_id: str, after: str) -> AsyncIterator[list[Entry]]:
        last = int(after.split("-")[0])
        yield (some := [e for e in self.commands_ if int(e[0].split("-")[0]) > last])
        while True:
            last = max([last, *(int(e[0].split("-")[0]) for e in some)])
            await asyncio.sleep(0.001)
            some = [e for e in self.commands_ if int(e[0].split("-")[0]) > last]
            if some:
                yield some

    async def publish(
        self,
        claim: Claim,
        number: int,
        event: messages.Progress,
        *,
        snapshot: bytes,
        last_command: str,
        stored_bytes: int = 0,
    ) -> bool:
        self.dies_at -= 1
        if self.dies_at == 0 and self.dies_before:
            raise Killed
        assert number == len(self.events) + 1
        self.events.append(event)
        self.saved, self.longest = snapshot, max(self.longest, len(snapshot))
        last = int(last_command.split("-")[0])
        self.commands_ = [e for e in self.commands_ if int(e[0].split("-")[0]) > last]
        for command in self.sent_after.pop(number, []):
            self.send_command(command)
        if isinstance(event, messages.JobFragment):
            self.send_command(messages.Ack(index=event.index))
        if self.dies_at == 0:
            raise Killed
        return True

    def fragments(self) -> list[messages.JobFragment]:
        return [event for event in self.events if isinstance(event, messages.JobFragment)]

    def video(self) -> Probe:
        return probe(
            b"".join(e.data for e in self.events if not isinstance(e, messages.JobInterrupted))
        )


def resources_of(tape: Tape, pipelines: Mapping[str, AvatarPipeline]) -> WorkerResources:
    return WorkerResources(
        tape,  # type: ignore[arg-type]
        pipelines,
        capacity=EASY,
        sandbox=sandbox(),
        max_audio_s=100.0,
    )


Deaths = list[tuple[int, bool]]
Output = Literal["video", "motion"]


def play(
    tape: Tape,
    request: messages.AnyRequest,
    deaths: Deaths,
    *,
    load: Callable[[], AvatarPipeline] = lambda: FakePipeline("fake"),
) -> messages.JobDone:
    """Run the whole job with as many workers as it takes."""

    async def one() -> messages.JobDone:
        resources = resources_of(tape, {request.model: load()})
        claim = Claim(
            "j",
            request,
            "1-0",
            token=1,
            events=len(tape.events),
            attempts=1,
            snapshot=tape.saved,
        )
        serving = asyncio.create_task(resources.serve())
        try:
            done = await jobs.run_job(resources, claim)
            assert isinstance(done, messages.JobDone)
            return done
        finally:
            serving.cancel()
            resources.close()

    for dies_at, dies_before in [*deaths, (10_000, False)]:
        tape.dies_at, tape.dies_before = dies_at, dies_before
        try:
            return asyncio.run(one())
        except Killed:
            continue
    raise AssertionError("the last worker never dies")


def speech(seconds: float) -> np.ndarray:
    """Two tones, whose mixture shows the position in the speech."""
    time = np.arange(round(seconds * RATE)) / RATE
    place = time / seconds
    tones = np.sin(2 * np.pi * 300 * time) * (1 - place) + np.sin(2 * np.pi * 1000 * time) * place
    return np.asarray(0.4 * tones * 32767, "<i2")


def animate(deaths: Deaths, output: Output = "video") -> tuple[Tape, messages.JobDone]:
    file = io.BytesIO()
    soundfile.write(file, speech(2.9), RATE, format="FLAC")
    tape = Tape({"portrait": picture(), "audio": file.getvalue()})
    options = AnimationOptions(size=128, output=output)
    request = messages.AnimateRequest(options=options, model="fake", seed=5)
    return tape, play(tape, request, deaths)


def talk(deaths: Deaths, output: Output = "video") -> tuple[Tape, messages.JobDone]:
    """Speech in uneven chunks, an update, an interrupt within a window, more speech."""
    tape = Tape({"portrait": picture()})
    sound = speech(2.9).tobytes()
    cuts = [0, 1, 3_333, 30_001, 60_000, len(sound)]
    for start, end in itertools.pairwise(cuts):
        tape.send_command(messages.AudioChunk(data=sound[start:end]))
    tape.send_command(messages.Update(steps=3))
    tape.sent_after[9] = [messages.Interrupt(), messages.AudioChunk(data=speech(0.9).tobytes())]
    tape.sent_after[12] = [messages.End()]
    options = AnimationOptions(size=128, output=output)
    request = messages.LiveRequest(
        options=options, model="fake", seed=5, sample_rate=RATE, idle=False
    )
    return tape, play(tape, request, deaths)


@cache
def undisturbed(
    make: Callable[[Deaths], tuple[Tape, messages.JobDone]],
) -> tuple[Tape, messages.JobDone]:
    return make([])


def check(make: Callable[[Deaths], tuple[Tape, messages.JobDone]], deaths: Deaths) -> None:
    whole, expected = undisturbed(make)
    tape, done = make(deaths)
    assert done == expected
    models = [event.model_dump() for event in tape.events]
    assert models == [event.model_dump() for event in whole.events]
    assert [f.index for f in tape.fragments()] == list(range(len(tape.fragments())))
    seen, alone = tape.video(), whole.video()
    assert seen.times_s == alone.times_s
    assert np.abs(seen.pictures - alone.pictures).max() < 2
    assert (seen.sound_s, len(seen.sound)) == (alone.sound_s, len(alone.sound))
    assert np.sqrt(((seen.sound - alone.sound) ** 2).mean()) < 0.02
    assert tape.longest < 300_000


DEATHS = st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=8, deadline=None)
@given(deaths=DEATHS)
def test_an_animation_resumes_wherever_its_workers_die(deaths: Deaths) -> None:
    check(animate, deaths)


@settings(max_examples=10, deadline=None)
@given(deaths=DEATHS)
def test_a_live_session_resumes_wherever_its_workers_die(deaths: Deaths) -> None:
    check(talk, deaths)


@pytest.mark.parametrize("make", [animate, talk])
def test_jobs_survive_a_death_at_every_event(
    make: Callable[[Deaths], tuple[Tape, messages.JobDone]],
) -> None:
    events = len(undisturbed(make)[0].events)
    check(make, [(1, False)] * events)
    check(make, [death for _ in range(events) for death in ((1, True), (1, False))])


@pytest.mark.parametrize("make", [animate, talk])
def test_motion_survives_a_death_at_every_event(
    make: Callable[[Deaths, Output], tuple[Tape, messages.JobDone]],
) -> None:
    whole, expected = make([], "motion")
    tape, done = make([(1, lost) for _ in whole.events for lost in (True, False)], "motion")
    assert done == expected and done.frames > 50
    assert tape.events == whole.events
    assert b"".join(f.data for f in tape.fragments()) == b"".join(f.data for f in whole.fragments())


def test_commands_that_a_snapshot_includes_are_trimmed() -> None:
    tape, _ = undisturbed(talk)
    assert [c for _, c in tape.commands_ if not isinstance(c, messages.Ack)] == []


def test_snapshots_of_the_format_before_are_read_and_later_ones_are_not() -> None:
    saved = undisturbed(talk)[0].saved
    assert saved is not None
    arrays, facts = unpack(saved)
    position = unpack_saved(saved)[1]
    before = {**facts, "format": messages.FORMAT - 1}
    assert unpack_saved(pack(arrays, before))[1] == position
    for unread in (messages.FORMAT - 2, messages.FORMAT + 1):
        with pytest.raises(ValueError, match=f"format of the snapshot = {unread}"):
            unpack_saved(pack(arrays, {**facts, "format": unread}))


@pytest.mark.parametrize(("attempts", "lease_timeouts"), [(3, 0), (1, 101)])
def test_a_job_that_kills_or_stalls_its_workers_fails(attempts: int, lease_timeouts: int) -> None:
    async def once() -> None:
        resources = resources_of(Tape({}), {"fake": FakePipeline("fake")})
        request = messages.AvatarRequest(model="fake", avatar_id="a")
        try:
            claim = Claim(
                "j",
                request,
                "1-0",
                token=attempts + lease_timeouts,
                events=0,
                attempts=attempts,
                snapshot=None,
                lease_timeouts=lease_timeouts,
            )
            await jobs.run_job(resources, claim)
        finally:
            resources.close()

    with pytest.raises(ServiceError, match="2 workers ended|held up 100 times"):
        asyncio.run(once())


def test_suspected_poison_runs_in_quarantine_or_not_at_all() -> None:
    async def once(*, quarantined: bool) -> None:
        resources = resources_of(Tape({}), {"fake": FakePipeline("fake")})
        if quarantined:
            resources.quarantine.add("j")
        request = messages.AvatarRequest(model="fake", avatar_id="a")
        try:
            claim = Claim("j", request, "1-0", token=2, events=0, attempts=2, snapshot=None)
            await jobs.run_job(resources, claim)
        finally:
            resources.close()

    with pytest.raises(ServiceError, match="none was free to try again"):
        asyncio.run(once(quarantined=False))
    with pytest.raises(ServiceError, match="portrait has expired"):  # it reads its inputs
        asyncio.run(once(quarantined=True))


def test_a_worker_that_lost_the_job_publishes_no_more() -> None:
    class Lost(Tape):
        async def publish(self, *arguments: object, **options: object) -> bool:
            return False

    with pytest.raises(JobAborted):
        play(
            Lost(undisturbed(animate)[0].parts),
            messages.AnimateRequest(options=AnimationOptions(size=128), model="fake", seed=5),
            [],
        )

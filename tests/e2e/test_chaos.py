"""Killed processes, a suspended or emptied Redis, and misbehaving clients under load.

Each session has a tone and a seed of its own, and its pictures take their colour from the seed. So
its video shows whether anything was lost, repeated, reordered or mixed up with another session.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import redis
from websockets.exceptions import ConnectionClosed

from server.broker.liveness import worker_id
from server.broker.redis import worker_key
from tests.server.fake_pipeline import GREEN_STEP
from tests.server.media_files import picture, sound
from tests.server.media_probe import probe
from tests.server.service import FAKE, Service, running, stopping
from tests.server.stream_client import Stream, stream_to

REDIS = shutil.which("redis-server")
RATE = 16_000
CHUNK_S = 0.1
STALL_S = 2.0

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.skipif(REDIS is None, reason="redis-server is not installed"),
]


@contextmanager
def redis_at(path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Redis on the unix socket ``path``; it answers when the block begins."""
    command = [REDIS or "", "--port", "0", "--unixsocket", str(path), "--dir", str(path.parent)]
    with (
        subprocess.Popen([*command, "--save", "", *options], stdout=subprocess.DEVNULL) as process,
        stopping(process),
    ):
        with redis.Redis(unix_socket_path=str(path)) as client:
            eventually(client.ping)
        yield process


def eventually(step: object, seconds: float = 20.0) -> None:
    """Call ``step`` until it neither raises a Redis error nor returns something false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if step():  # type: ignore[operator]
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.05)


@dataclass
class World:
    """A service of two workers over a Redis of its own."""

    service: Service
    path: Path

    def keys(self) -> set[bytes]:
        """The keys of jobs, without the status of asynchronous ones."""
        with redis.Redis(unix_socket_path=str(self.path)) as client:
            found = set(client.keys("fada:job:*"))
            hashes = {key for key in found if client.type(key) == b"hash"}
            ended = {k for k in hashes if b'"kind":"animate"' in (client.hget(k, "request") or b"")}
            return found - ended

    def ready(self, count: int = 2) -> None:
        """Wait until so many workers live."""
        with redis.Redis(unix_socket_path=str(self.path)) as client:
            eventually(lambda: len(client.keys("fada:worker:*")) >= count, 60.0)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        with redis_at(path), running(settings(path)) as service:
            yield World(service, path)


def settings(path: Path) -> dict[str, str]:
    return {**FAKE, "FADA_REDIS_URL": f"unix://{path}", "FADA_WORKERS": "2"}


@dataclass
class Talker(threading.Thread):
    """A client that speaks its tone in real time for ``seconds`` and keeps what comes back."""

    url: str
    number: int
    seconds: float
    idle: bool
    slow_s: float = 0.0  # between two fragments
    stream: Stream | None = None
    failure: BaseException | None = None
    ended: int | None = None
    times_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    @property
    def hertz(self) -> int:
        return 300 + 170 * self.number

    def run(self) -> None:
        try:
            with stream_to(self.url) as self.stream:
                self.stream.start(seed=self.number, idle=self.idle, sample_rate=RATE)
                speaking = threading.Thread(target=self._speak, args=(self.stream,), daemon=True)
                speaking.start()
                self.ended = self._listen(self.stream)
                speaking.join(5.0)
        except BaseException as error:
            self.failure = error

    def _listen(self, stream: Stream) -> int:
        try:
            while True:
                if stream.next() == "fragment" and self.slow_s:
                    time.sleep(self.slow_s)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code

    def _speak(self, stream: Stream) -> None:
        count, began_s = round(RATE * CHUNK_S), time.monotonic()
        try:
            for n in range(round(self.seconds / CHUNK_S)):
                moment = (np.arange(count) + n * count) / RATE
                tone = 8000 * np.sin(2 * np.pi * self.hertz * moment)
                stream.send_audio(tone.astype("<i2").tobytes())
                time.sleep(max(0.0, began_s + (n + 1) * CHUNK_S - time.monotonic()))
            stream.send("end")
        except ConnectionClosed:
            return  # the reading thread knows how it ended

    def longest_stall_s(self) -> float:
        assert self.stream is not None
        return max(np.diff(self.stream.times_s))

    def check(self) -> None:
        """All that was sent came back once, in order, without anything of another session."""
        assert self.failure is None, self.failure
        stream = self.stream
        assert stream is not None and self.ended == 1000, stream and stream.texts[-1]
        fragments = stream.of("fragment")
        assert [f["index"] for f in fragments] == list(range(len(fragments)))
        assert len(stream.data) == len(fragments) + 1
        seen = stream.video()
        assert np.diff(seen.times_s) == pytest.approx(0.04)
        assert seen.video_s == pytest.approx(stream.texts[-1]["duration_s"], abs=0.041)
        assert seen.sound_s == pytest.approx(stream.texts[-1]["duration_s"], abs=0.001)
        assert np.abs(seen.pictures[:, 1] - self.number * GREEN_STEP).max() < 12
        speech_s = sum(f["duration_s"] for f in fragments if f["kind"] == "speech")
        assert speech_s == pytest.approx(self.seconds, abs=0.041)
        self._check_tone(seen.sound, seen.rate)

    def _check_tone(self, samples: np.ndarray, rate: int) -> None:
        """Every eighth of a second is silent or its own tone, with nothing else a tenth as loud."""
        block = rate // 8
        tones = 0
        for start in range(block, len(samples) - 2 * block, block):
            part = samples[start : start + block]
            if np.sqrt((part**2).mean()) < 0.15:  # rest, or the edge of speech
                continue
            tones += 1
            spectrum = np.abs(np.fft.rfft(part * np.hanning(block)))
            hertz = np.arange(len(spectrum)) * rate / block
            own = np.abs(hertz - self.hertz) < 40
            assert spectrum[own].max() > 10 * spectrum[~own].max(), (start / rate, self.hertz)
        assert tones >= (self.seconds - 0.6) * 8


def party(world: World, count: int, seconds: float) -> list[Talker]:
    talkers = [Talker(world.service.url, n + 1, seconds, idle=n % 2 == 0) for n in range(count)]
    for talker in talkers:
        talker.start()
    return talkers


def kill_one(world: World, chance: random.Random) -> None:
    """Kill one of two live workers; returns once its key has expired."""
    world.ready()
    worker = chance.choice(world.service.workers())
    os.kill(worker, signal.SIGKILL)
    key = worker_key(worker_id(worker))
    with redis.Redis(unix_socket_path=str(world.path)) as client:
        eventually(lambda: not client.exists(key))


def finish(world: World, talkers: list[Talker], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for talker in talkers:
        talker.join(max(0.0, deadline - time.monotonic()))
        assert not talker.is_alive(), world.service.log.read_text()[-3000:]
        talker.check()


def test_sessions_and_jobs_survive_killed_workers(world: World) -> None:
    world.ready()
    talkers = party(world, 3, seconds=9.0)
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(9.0))}
    with world.service.client() as client:
        answer = client.post("/animate", files=files, headers={"Prefer": "respond-async"})
        job = answer.headers["location"]
        chance = random.Random(1)
        for _ in range(3):
            time.sleep(chance.uniform(0.3, 0.8))
            kill_one(world, chance)
        finish(world, talkers, 60.0)
        video = probe(client.get(f"{job}/video").content)
        assert client.delete(job).status_code == 204
    assert video.video_s == pytest.approx(9.0)
    assert np.diff(video.times_s) == pytest.approx(0.04)
    stalls = [talker.longest_stall_s() for talker in talkers]
    assert max(stalls) <= STALL_S, stalls


def admitted(world: World, stack: ExitStack) -> Stream:
    """A resting session, once there is room: a lost connection keeps its place for a while."""
    deadline = time.monotonic() + 20.0
    while True:
        stream = stack.enter_context(stream_to(world.service.url))
        try:
            stream.start(seed=9, idle=True)
            stream.until("fragment")
            return stream
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1013
            assert time.monotonic() < deadline, "no place became free"
            time.sleep(0.2)


def test_misbehaving_clients_do_not_affect_other_sessions(world: World) -> None:
    world.ready(1)
    talkers = party(world, 2, seconds=4.0)
    slow = Talker(world.service.url, 3, 4.0, idle=False, slow_s=0.4)
    slow.start()
    # All are admitted before the misbehaving ones: this machine may hold no more than three.
    eventually(lambda: all(t.stream and "fragment" in t.stream.kinds for t in [*talkers, slow]))
    for n in range(4):
        with ExitStack() as stack:
            bad = admitted(world, stack)
            if n % 2:
                bad.socket.send(
                    ["\x00{", os.urandom(50).hex(), '{"type":"update","steps":-1}'][n - 1]
                )
                assert bad.close_code() == 1008
            else:
                bad.socket.socket.shutdown(2)  # without a close frame
    finish(world, [*talkers, slow], 40.0)
    eventually(lambda: not world.keys())


@pytest.mark.slow
def test_stopping_workers_hand_their_sessions_over(world: World) -> None:
    world.ready()
    talkers = party(world, 2, seconds=5.0)
    time.sleep(1.5)
    worker = world.service.workers()[0]
    os.kill(worker, signal.SIGTERM)
    finish(world, talkers, 40.0)
    stalls = [talker.longest_stall_s() for talker in talkers]
    assert max(stalls) <= STALL_S, stalls
    assert worker not in world.service.workers()


@pytest.mark.slow
def test_suspended_workers_do_no_harm_when_they_resume(world: World) -> None:
    world.ready()
    talkers = party(world, 3, seconds=9.0)
    for worker in world.service.workers():
        time.sleep(1.0)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(2.0)  # beyond its lease
        os.kill(worker, signal.SIGCONT)
    finish(world, talkers, 40.0)


@pytest.mark.slow
@pytest.mark.parametrize("paused_s", [2.5, 8.0])  # below and above the time-out of a call
def test_sessions_survive_a_suspended_redis(world: World, paused_s: float) -> None:
    world.ready()
    talkers = party(world, 2, seconds=6.0)
    time.sleep(2.0)
    with redis.Redis(unix_socket_path=str(world.path)) as client:
        server = client.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    time.sleep(paused_s)
    os.kill(server, signal.SIGCONT)
    finish(world, talkers, 40.0)


def test_a_redis_that_loses_its_data_ends_sessions_with_an_error() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        with redis_at(path), running(settings(path)) as service:
            before = World(service, path)
            before.ready(1)
            talkers = party(before, 2, seconds=30.0)
            time.sleep(2.0)
            with redis.Redis(unix_socket_path=str(path)) as client:
                client.shutdown(nosave=True)
            with redis_at(path):
                for talker in talkers:
                    talker.join(20.0)
                    assert not talker.is_alive()
                    assert talker.stream is not None and talker.failure is None
                    assert talker.stream.texts[-1]["type"] == "error"
                    assert talker.ended in (1011, 1013)
                after = World(service, path)
                after.ready(1)
                finish(after, party(after, 2, seconds=1.0), 30.0)


@pytest.mark.slow
def test_sessions_survive_a_redis_that_restores_its_data() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        with running_over(path, *durable) as world:
            talkers = party(world, 2, seconds=6.0)
            time.sleep(2.0)
            with redis.Redis(unix_socket_path=str(path)) as client:
                client.shutdown()
            with redis_at(path, *durable):
                finish(world, talkers, 40.0)


@contextmanager
def running_over(path: Path, *options: str) -> Iterator[World]:
    with redis_at(path, *options), running(settings(path)) as service:
        world = World(service, path)
        world.ready(1)
        yield world


@pytest.mark.slow
def test_sessions_survive_fifty_killed_workers(world: World) -> None:
    chance = random.Random(2)
    kills, stalls = 0, list[float]()
    while kills < 50:
        world.ready()
        talkers = party(world, 4, seconds=25.0)
        while kills < 50 and any(talker.is_alive() for talker in talkers):
            time.sleep(chance.uniform(0.2, 2.0))
            kill_one(world, chance)
            kills += 1
        finish(world, talkers, 120.0)
        stalls += [talker.longest_stall_s() for talker in talkers]
    print(json.dumps({"kills": kills, "stalls_s": sorted(round(s, 2) for s in stalls)}))
    assert max(stalls) <= STALL_S, stalls
    eventually(lambda: not world.keys())

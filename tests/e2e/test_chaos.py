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
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import redis
from websockets.exceptions import ConnectionClosed

from server.broker.liveness import worker_id
from server.broker.redis import worker_key
from tests.e2e.talker import Talker, eventually
from tests.server.media_files import picture, sound
from tests.server.media_probe import probe
from tests.server.service import FAKE, Service, running, stopping
from tests.server.stream_client import Stream, stream_to

REDIS = shutil.which("redis-server")
STALL_S = 5.0  # about 1 s without load: leases expire, others take over

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


@dataclass
class World:
    """A service of two workers over a Redis of its own."""

    service: Service
    path: Path
    redis: ExitStack

    def replace_redis(self) -> None:
        """Stop Redis without saving, and start an empty one in its place."""
        with redis.Redis(unix_socket_path=str(self.path)) as client:
            client.shutdown(nosave=True)
        self.redis.enter_context(redis_at(self.path))

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
    with (
        tempfile.TemporaryDirectory() as directory,
        running_over(Path(directory) / "redis.sock") as world,
    ):
        yield world


def settings(path: Path) -> dict[str, str]:
    return {**FAKE, "FADA_REDIS_URL": f"unix://{path}", "FADA_WORKERS": "2"}


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


def until_all_go_on(talkers: list[Talker]) -> None:
    """Wait for a fragment of each: a session that makes none between two deaths is blamed."""

    def received() -> list[int]:
        return [len(talker.stream.times_s) if talker.stream else 0 for talker in talkers]

    before = received()
    eventually(lambda: all(now > then for now, then in zip(received(), before, strict=True)))


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
            until_all_go_on(talkers)
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


def test_a_redis_that_loses_its_data_ends_sessions_with_an_error(world: World) -> None:
    world.ready(1)
    talkers = party(world, 2, seconds=30.0)
    time.sleep(2.0)
    world.replace_redis()
    for talker in talkers:
        talker.join(20.0)
        assert not talker.is_alive()
        assert talker.stream is not None and talker.failure is None
        assert talker.stream.texts[-1]["type"] == "error"
        assert talker.ended in (1011, 1013)
    world.ready(1)
    finish(world, party(world, 2, seconds=1.0), 30.0)


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
    with ExitStack() as stack:
        stack.enter_context(redis_at(path, *options))
        world = World(stack.enter_context(running(settings(path))), path, stack)
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

"""Sentinels, a primary and a replica, all real: the primary is killed under live sessions."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.e2e.talker import Talker, eventually
from tests.server.service import FAKE, Service, running, stopping, working

REDIS, SENTINEL = shutil.which("redis-server"), shutil.which("redis-sentinel")
PASSWORD = "of the queue: /@,?"
QUOTED = "of%20the%20queue%3A%20%2F%40%2C%3F"
ERROR_S = 5.0

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(not (REDIS and SENTINEL), reason="redis-sentinel is not installed"),
]


@dataclass
class Group:
    """A primary with one replica, and the ports of three Sentinels that watch them."""

    primary: subprocess.Popen[bytes]
    replica: redis.Redis
    sentinels: list[int]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://:{QUOTED}@{hosts}/queue/0"

    def places(self) -> int:
        """For live sessions, of all workers."""
        workers = self.replica.mget(self.replica.keys("fada:worker:*") or ["fada:none"])
        return sum(json.loads(worker)["live_places"] for worker in workers if worker)

    def kill_primary(self) -> None:
        """Returns once the replica is the primary."""
        self.primary.kill()
        eventually(lambda: self.replica.role()[0] == b"master")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


@contextmanager
def group() -> Iterator[Group]:
    first, second, *sentinels = free_ports(5)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def run(program: str | None, port: int, settings: str) -> subprocess.Popen[bytes]:
            config = folder / f"{port}.conf"
            config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{settings}\n")
            command = [program or "", str(config)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.enter_context(stopping(process))
            return process

        def client(port: int, password: str | None = None) -> redis.Redis:
            return stack.enter_context(closing(redis.Redis(port=port, password=password)))

        secret = f'requirepass "{PASSWORD}"\nmasterauth "{PASSWORD}"\nsave ""'
        secret += "\nrepl-diskless-sync-delay 0"
        primary = run(REDIS, first, secret)
        run(REDIS, second, f"{secret}\nreplicaof 127.0.0.1 {first}")
        replica = client(second, PASSWORD)
        eventually(lambda: replica.info("replication")["master_link_status"] == "up")
        for port in sentinels:
            run(
                SENTINEL,
                port,
                f"sentinel monitor queue 127.0.0.1 {first} 2\n"
                f'sentinel auth-pass queue "{PASSWORD}"\n'
                "sentinel down-after-milliseconds queue 1000\n"
                "sentinel failover-timeout queue 5000",
            )
        for port in sentinels:
            watcher = client(port)

            def knows_all(watcher: redis.Redis = watcher) -> bool:
                state = watcher.sentinel_master("queue")
                return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1

            eventually(knows_all)
        yield Group(primary, replica, sentinels)


def admitted(service: Service, number: int) -> Talker:
    """A session that runs; a busy machine may take it only after a while."""
    deadline = time.monotonic() + 20.0
    while True:
        talker = Talker(service.url, number, 6.0, idle=number % 2 == 0)
        talker.start()
        while talker.is_alive() and not (talker.stream and "fragment" in talker.stream.kinds):
            time.sleep(0.02)
        if talker.is_alive():
            return talker
        assert talker.ended == 1013 and time.monotonic() < deadline, talker.failure
        time.sleep(0.3)


@pytest.fixture(scope="module")
def redis_group() -> Iterator[Group]:
    """Started, as the service is, before the test has its turn alone."""
    with group() as started:
        yield started


@pytest.fixture(scope="module")
def service(redis_group: Group) -> Iterator[Service]:
    """An API and two workers that have joined.

    As if on machines of their own, or they would share out the cores and so the places.
    """
    settings = {**FAKE, "FADA_REDIS_URL": redis_group.url}
    with running(settings, "api") as service, working(settings), working(settings):
        eventually(lambda: redis_group.places() >= 4, 60.0)
        yield service


def test_sessions_survive_a_killed_primary(redis_group: Group, service: Service) -> None:
    talkers = [admitted(service, n + 1) for n in range(4)]
    time.sleep(0.5)
    assert all(talker.is_alive() for talker in talkers)
    killed_s = time.monotonic()
    redis_group.kill_primary()
    ended_s = dict[int, float]()
    while len(ended_s) < len(talkers):
        assert time.monotonic() < killed_s + 40.0, service.log.read_text()[-3000:]
        for talker in talkers:
            if not talker.is_alive():
                ended_s.setdefault(talker.number, time.monotonic())
        time.sleep(0.05)
    complete = [talker for talker in talkers if talker.ended == 1000]
    for talker in complete:
        talker.check()
    assert len(complete) >= 3, service.log.read_text()[-3000:]
    for talker in set(talkers) - set(complete):
        assert talker.failure is None and talker.stream is not None
        assert talker.stream.texts[-1]["type"] == "error"
        assert ended_s[talker.number] < killed_s + ERROR_S
    fresh = Talker(service.url, 5, 1.0, idle=False)
    fresh.start()
    fresh.join(20.0)
    fresh.check()

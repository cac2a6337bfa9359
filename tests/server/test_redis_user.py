"""The service over TLS as the Redis user of the guide, who may what it needs and no more."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest
import redis

from server.broker import messages
from server.broker.client import open_client
from server.broker.consumer import JobConsumer
from server.broker.redis import Connection, check_connection
from server.broker.reservations import Retention
from server.errors import SetupError
from tests.e2e.talker import eventually
from tests.server.media_files import picture
from tests.server.rest_client import animate
from tests.server.service import FAKE, Service, running, stopping
from tests.server.stream_client import stream_to

REDIS, OPENSSL = shutil.which("redis-server"), shutil.which("openssl")
GUIDE = Path(__file__).parents[2] / "docs/guide/operate.md"
LIMITS = {
    "FADA_REQUESTS_PER_MINUTE": "1000",
    "FADA_SESSIONS_PER_CLIENT": "4",
    "FADA_MAX_AVATARS": "1",
    "FADA_MAX_VIDEOS": "1",
}

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not (REDIS and OPENSSL), reason="redis-server or openssl is not installed"),
]


@dataclass
class Secured:
    """A Redis whose ``url`` is for the guide's user; ``admin`` comes by a unix socket."""

    url: str
    admin: redis.Redis


def guides_user() -> str:
    found = re.search(r"^user fada .*$", GUIDE.read_text(), re.M)
    assert found is not None
    return found[0]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, which is its own authority, and its key."""
    files = folder / f"{name}.pem", folder / f"{name}.key"
    command = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name}"
    command += f" -addext subjectAltName=IP:127.0.0.1 -out {files[0]} -keyout {files[1]}"
    subprocess.run([OPENSSL or "", *command.split()], check=True, capture_output=True)
    return files


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("r")
    public, private = certificate(folder, "redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "redis.conf"
    config.write_text(
        f"port 0\ntls-port {port}\nbind 127.0.0.1\ntls-auth-clients no\nsave ''\n"
        f"tls-cert-file {public}\ntls-key-file {private}\ntls-ca-cert-file {public}\n"
        f"unixsocket {folder}/s\ndir {folder}\n{guides_user()}\n"
    )
    with (
        subprocess.Popen([REDIS or "", str(config)], stdout=subprocess.DEVNULL) as process,
        stopping(process),
        redis.Redis(unix_socket_path=f"{folder}/s", decode_responses=True) as admin,
    ):
        eventually(admin.ping)
        url = f"rediss://fada:PASSWORD@127.0.0.1:{port}/0?ssl_ca_certs={public}"
        yield Secured(url, admin)


async def test_the_guides_user_may_what_the_service_needs_and_no_more(secured: Secured) -> None:
    secured.admin.config_resetstat()
    secured.admin.script_flush()
    with running({**FAKE, **LIMITS, "FADA_REDIS_URL": secured.url}) as service:
        use_everything(service)
    await rarely(secured.url)
    denied = {entry["object"] for entry in secured.admin.acl_log()}
    assert denied <= {"client|setinfo"}  # the client's version, which newer servers take
    texts = [
        path.read_bytes()
        for path in resources.files("server.broker").joinpath("lua").iterdir()
        if path.name.endswith(".lua")
    ]
    hashes = [hashlib.sha1(text).hexdigest() for text in texts]
    assert all(secured.admin.script_exists(*hashes))  # each has run
    called = {name.removeprefix("cmdstat_") for name in secured.admin.info("commandstats")}
    allowed = {word[1:] for word in guides_user().split() if word.startswith("+")}
    assert allowed - called == set()


def use_everything(service: Service) -> None:
    """Every call of the API, limits that are reached, and a killed worker."""
    with service.client() as client:
        assert animate(client).status_code == 200
        for _ in range(2):
            job = animate(client, headers={"Prefer": "respond-async"}).headers["location"]
            eventually(lambda job=job: client.get(job).json()["status"] == "done")
        assert client.get(f"{job}/video", headers={"Range": "bytes=0-99"}).status_code == 206
        assert client.get(f"{job}/video").status_code == 200
        assert client.delete(job).status_code == 204
        avatars = [
            client.post("/avatars", files={"portrait": ("p.png", picture())}).json()["avatar_id"]
            for _ in range(2)
        ]
        assert client.get(f"/avatars/{avatars[0]}").status_code == 404
        with stream_to(service.url) as stream:
            stream.start(avatar_id=avatars[1], idle=True)
            stream.send_audio(bytes(3200))
            stream.until("fragment")
            stream.send("interrupt")
            stream.until("interrupted")
            os.kill(service.workers()[0], signal.SIGKILL)
            eventually(lambda: client.get("/readyz").status_code == 503)
            eventually(lambda: client.get("/readyz").status_code == 200)
            seen = len(stream.of("fragment"))
            while len(stream.of("fragment")) <= seen:
                stream.next()
            stream.finish()
        assert client.delete(f"/avatars/{avatars[1]}").status_code == 204
        assert "fada_broker_memory_bytes" in client.get("/metrics").text
        assert client.get("/models").status_code == 200


async def rarely(url: str) -> None:
    """What happens after a minute of idleness: a consumer's name is removed."""
    async with open_client(url, 5.0) as client:
        retention = Retention(job_ttl_s=9, avatar_ttl_s=9, max_avatars=1, max_videos=1)
        consumer = JobConsumer(Connection(client, client), "gone", retention)
        await consumer.heartbeat(messages.Heartbeat(models=[], live_places=0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("server.broker.leases._CONSUMER_TTL_MS", -1)
            await consumer.join()
        await consumer.leave()
    await sockets_closed()


@pytest.mark.parametrize("command", ["KEYS *", "FLUSHALL", "GET other", "CONFIG GET *", "ACL LIST"])
async def test_the_guides_user_may_nothing_else(secured: Secured, command: str) -> None:
    async with open_client(secured.url, 5.0) as client:
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.execute_command(*command.split())
    secured.admin.acl_log_reset()
    await sockets_closed()


async def test_a_server_of_another_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path, "other")
    base = secured.url.partition("?")[0]
    for wrong in (other, tmp_path / "missing.pem"):
        with pytest.raises(SetupError, match="FADA_REDIS_URL") as error:
            await check_connection(f"{base}?ssl_ca_certs={wrong}", 0.0)
        assert "PASSWORD" not in str(error.value)
    await sockets_closed()


async def test_a_wrong_password_is_refused(secured: Secured) -> None:
    with pytest.raises(SetupError, match="FADA_REDIS_URL"):
        await check_connection(secured.url.replace("PASSWORD", "guessed"), 10.0)
    await sockets_closed()


async def sockets_closed() -> None:
    """TLS says goodbye after the client is closed; until then the loop must not end."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while len(selector.get_map()) > 1:  # the loop's own
            await asyncio.sleep(0.01)

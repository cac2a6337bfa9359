"""API keys, quotas and CORS on the real service and broker."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.requests import HTTPConnection
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from fada.cli import main
from server.api.access import Access
from server.broker.embedded import embedded_server, valkey_program
from server.broker.redis import connect as connect_to
from server.errors import ServiceError
from server.settings import Settings
from tests.server.media_files import picture, sound
from tests.server.service import FAKE, KEYS, ORIGIN, Service, running, working
from tests.server.stream_client import Stream, pcm

FORM = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(0.2))}


@contextmanager
def stream_with(
    service: Service, headers: dict[str, str] | None = None, offers: list[str] | None = None
) -> Iterator[Stream]:
    url = service.url.replace("http", "ws", 1) + "/stream"
    protocols = None if offers is None else [Subprotocol(offer) for offer in offers]
    with connect(url, additional_headers=headers, subprotocols=protocols) as socket:
        yield Stream(socket)


def offered(key: str) -> str:
    return "fada.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def test_routes_that_need_no_key(guarded: Service) -> None:
    with guarded.client() as client:
        for path in ("/", "/static/studio.js", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        schemes = client.get("/openapi.json").json()["components"]["securitySchemes"]
        assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}


WRONG: list[dict[str, str]] = [
    {},
    {"X-API-Key": "first-key-of-tw"},
    {"X-API-Key": ""},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Basic first-key-of-two"},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer first-key-of-two,s/2:%+=-and-longer"},
]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/animate"),
        ("GET", "/models"),
        ("POST", "/avatars"),
        ("GET", "/avatars/x"),
        ("DELETE", "/avatars/x"),
        ("GET", "/jobs/x"),
        ("GET", "/jobs/x/video"),
        ("DELETE", "/jobs/x"),
    ],
)
def test_routes_that_need_a_key(guarded: Service, method: str, path: str) -> None:
    with guarded.client() as client:
        for headers in WRONG:
            refused = client.request(method, path, headers=headers)
            assert refused.status_code == 401, headers
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.json()["code"] == "unauthorized"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_every_key_is_accepted(guarded: Service, key: str, header: str) -> None:
    headers = {header: f"bearer {key}" if header == "Authorization" else key}
    with guarded.client() as client:
        assert client.get("/models", headers=headers).status_code == 200
        made = client.post("/animate", files=FORM, data={"size": "128"}, headers=headers)
        assert made.status_code == 200


def test_an_upload_without_a_key_gets_a_response(guarded: Service) -> None:
    with guarded.client() as client:
        refused = client.post("/animate", files={**FORM, "audio": ("a.wav", bytes(20 << 20))})
    assert refused.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("headers", "offers"),
    [
        (None, None),
        ({"X-API-Key": "wrong"}, None),
        (None, ["fada"]),
        (None, ["fada", offered("wrong")]),
        (None, ["fada", "fada.key.!"]),
    ],
)
def test_live_sessions_need_a_key(
    guarded: Service, headers: dict[str, str] | None, offers: list[str] | None
) -> None:
    with stream_with(guarded, headers, offers) as stream:
        assert stream.close_code() == 1008
        assert stream.texts[-1]["type"] == "error"
        assert stream.texts[-1]["code"] == "unauthorized"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("way", ["bearer", "header", "subprotocol"])
def test_a_live_session_with_a_key(guarded: Service, key: str, way: str) -> None:
    headers = {"bearer": {"Authorization": f"Bearer {key}"}, "header": {"X-API-Key": key}}.get(way)
    offers = ["fada", offered(key)] if way == "subprotocol" else None
    with stream_with(guarded, headers, offers) as stream:
        assert stream.socket.subprotocol == ("fada" if offers else None)
        stream.start()
        stream.send_audio(pcm(0.2))
        assert stream.finish()["type"] == "done"


def test_allowed_origins_may_call(guarded: Service) -> None:
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-api-key,prefer",
    }
    with guarded.client() as client:
        before = client.options("/animate", headers={"Origin": ORIGIN, **asks})
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == ORIGIN
        assert client.options("/animate", headers={"Origin": "https://c.example", **asks}).is_error
        answer = client.get("/models", headers={"Origin": ORIGIN, "X-API-Key": KEYS[0]})
        assert "X-Seed" in answer.headers["access-control-expose-headers"]
        refused = client.get("/models", headers={"Origin": ORIGIN})  # the page can read the reason
        assert refused.headers["access-control-allow-origin"] == ORIGIN


def test_an_unsendable_key_is_rejected_and_not_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FADA_API_KEYS", "good,söcret")
    with pytest.raises(SystemExit, match="FADA_API_KEYS") as ended:
        main(["api"])
    output = "".join(capsys.readouterr()) + str(ended.value)
    assert "cret" not in output and "good" not in output


@pytest.fixture
def two_apis() -> Iterator[tuple[Service, Service]]:
    """Two API processes over one broker, with limits for a client."""
    with embedded_server(valkey_program()) as broker, ExitStack() as stack:
        settings = {
            **FAKE,
            "FADA_REDIS_URL": broker.url,
            "FADA_API_KEYS": ",".join(KEYS),
            "FADA_REQUESTS_PER_MINUTE": "20",
            "FADA_SESSIONS_PER_CLIENT": "2",
        }
        stack.enter_context(working(settings))
        apis = [stack.enter_context(running(settings, "api")) for _ in range(2)]
        with apis[0].client() as client:
            deadline = time.monotonic() + 20
            while client.get("/readyz").is_error:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield apis[0], apis[1]


def test_limits_hold_across_api_processes(two_apis: tuple[Service, Service]) -> None:
    one, two = two_apis
    key_a, key_b = {"X-API-Key": KEYS[0]}, {"X-API-Key": KEYS[1]}
    with ExitStack() as stack:
        for service in two_apis:  # two live sessions of one key: its places
            stream = stack.enter_context(stream_with(service, key_a))
            stream.start(idle=True)
            stream.until("fragment")
        third = stack.enter_context(stream_with(one, key_a))
        third.start()
        assert third.close_code() == 1013
        assert third.texts[-1]["code"] == "busy"
        assert "2 live sessions" in third.texts[-1]["detail"]
        other = stack.enter_context(stream_with(one, key_b))
        other.start()
        other.send_audio(pcm(0.2))
        other.finish()
    until_free(two, key_a)

    began_s = time.monotonic()
    answers = [ask(service, key_a) for _ in range(20) for service in two_apis]
    refill = (time.monotonic() - began_s) * 20 / 60  # of 20 requests a minute
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(answers) - len(refused) <= 20 + refill
    assert refused[0].json()["code"] == "busy"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 4
    assert ask(two, key_b).status_code == 200
    until_refused(one, key_a)
    with stream_with(two, key_a) as stream:
        assert stream.close_code() == 1013
    time.sleep(int(until_refused(two, key_a).headers["retry-after"]))
    assert ask(one, key_a).status_code == 200  # what the header promises


def until_refused(service: Service, headers: dict[str, str]) -> httpx.Response:
    """Retry: on a slow machine another token may have become available meanwhile."""
    for _ in range(40):
        answer = ask(service, headers)
        if answer.status_code == 429:
            return answer
    raise AssertionError("never refused")


def ask(service: Service, headers: dict[str, str]) -> httpx.Response:
    with service.client() as client:
        return client.get("/models", headers=headers)


def until_free(service: Service, headers: dict[str, str]) -> None:
    """A client that disconnected has its places back."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with stream_with(service, headers) as stream:
            stream.start()
            stream.send("end")
            if stream.close_code() == 1000:
                return
    pytest.fail("the places are not free again")


def test_without_keys_limits_apply_to_addresses() -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(embedded_server(valkey_program()))
        settings = {"FADA_REDIS_URL": broker.url, "FADA_REQUESTS_PER_MINUTE": "2"}
        service = stack.enter_context(running(settings, "api"))
        assert [ask(service, {}).status_code for _ in range(3)] == [200, 200, 429]
        assert ask(service, {"X-Forwarded-For": "203.0.113.9"}).status_code == 429  # of any address
        with service.client() as client:
            assert client.get("/healthz").status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("server", ["valkey", "redis-server"])
async def test_counts_work_on_valkey_and_redis_when_memory_is_full(server: str) -> None:
    program = valkey_program() if server == "valkey" else shutil.which(server)
    if program is None:
        pytest.skip("no redis-server on the PATH")
    request = HTTPConnection({"type": "http", "headers": [], "client": ("192.0.2.1", 1)})
    settings = Settings(requests_per_minute=2, sessions_per_client=1)
    with embedded_server(Path(program)) as broker:
        async with connect_to(broker.url) as connection:
            access = Access(connection, settings)
            await connection.redis.config_set("maxmemory", 1)  # no memory is left
            client = await access.admit(request)
            assert await access.admit(request) == client
            assert (client.name, client.owner) == ("address:192.0.2.1", "")
            with pytest.raises(ServiceError) as refused:
                await access.admit(request)
            assert refused.value.code == "busy" and 1 <= (refused.value.retry_after_s or 0) <= 30
            async with access.session(client.name):
                with pytest.raises(ServiceError, match="at most 1 live sessions"):
                    async with access.session(client.name):
                        pytest.fail("there is one place")
                async with access.session("another"):
                    pass
            async with access.session(client.name):
                pass
            async for key in connection.redis.scan_iter("fada:*"):
                assert 0 < await connection.redis.ttl(key) <= 61

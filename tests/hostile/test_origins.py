"""Foreign origins, host names and keys are rejected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus

from tests.server.media_files import picture, sound
from tests.server.rest_client import animate, problem
from tests.server.service import Service, running
from tests.server.stream_client import pcm, stream_to

ALLOWED = "https://app.example"
ONE, TWO = {"X-API-Key": "0123456789abcdef"}, {"X-API-Key": "fedcba9876543210"}
KEYS = ",".join(key["X-API-Key"] for key in (ONE, TWO))


@pytest.fixture(scope="module")
def keyed(service: Service, broker: str) -> Iterator[Service]:
    extra = {"FADA_CORS_ORIGINS": ALLOWED, "FADA_HOSTS": "fada.example"}
    with running({"FADA_REDIS_URL": broker, "FADA_API_KEYS": KEYS, **extra}, "api") as api:
        yield api


@pytest.fixture(scope="module")
def shared(service: Service, broker: str) -> Iterator[Service]:
    """Its keys share, and it is behind a proxy."""
    extra = {"FADA_KEYS_SHARE": "1", "FADA_TRUSTED_PROXIES": "127.0.0.1"}
    with running({"FADA_REDIS_URL": broker, "FADA_API_KEYS": KEYS, **extra}, "api") as api:
        yield api


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "x", "//"]
)
def test_pages_of_other_origins_cannot_change_anything(service: Service, origin: str) -> None:
    headers = {"Origin": origin}
    with service.client() as client:
        assert problem(animate(client, headers=headers)) == (403, "forbidden")
        assert problem(client.delete("/jobs/" + 24 * "a", headers=headers)) == (403, "forbidden")
        assert (
            client.get("/healthz", headers=headers).status_code == 200
        )  # browsers do not let the page read it
    with pytest.raises(InvalidStatus) as refused, stream_to(service.url, headers):
        pass
    assert refused.value.response.status_code == 403


def test_own_pages_and_programs_are_allowed(service: Service) -> None:
    for headers in ({"Origin": service.url}, None):
        with service.client() as client:
            assert animate(client, headers=headers).status_code == 200
        with stream_to(service.url, headers) as stream:
            stream.start()
            stream.send_audio(pcm(0.1))
            stream.finish()


def test_allowed_origins_are_accepted(keyed: Service) -> None:
    with keyed.client() as client:
        assert animate(client, headers={"Origin": ALLOWED, **ONE}).status_code == 200
        assert animate(client, headers={"Origin": ALLOWED + ":8443", **ONE}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_rebound_host_names_are_rejected(service: Service, host: str) -> None:
    with service.client() as client:
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            assert problem(client.get("/models", headers=headers)) == (403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "[::1]:80", "127.0.0.1:1"])
def test_loopback_names_are_accepted(service: Service, host: str) -> None:
    with service.client() as client:
        assert client.get("/models", headers={"Host": host}).status_code == 200


def test_configured_hosts_are_accepted(keyed: Service) -> None:
    with keyed.client() as client:
        for host in ("fada.example", "FADA.example:8000", "localhost"):
            assert client.get("/healthz", headers={"Host": host}).status_code == 200
        assert client.get("/healthz", headers={"Host": "other.example"}).status_code == 403


def test_a_key_sees_its_own_jobs_and_avatars_only(keyed: Service) -> None:
    with keyed.client() as client:
        made = client.post("/avatars", files={"portrait": ("p.png", picture())}, headers=ONE)
        avatar = f"/avatars/{made.json()['avatar_id']}"
        headers = {"Prefer": "respond-async", **ONE}
        job = animate(client, audio=sound(1.0), headers=headers).headers["location"]
        for path in (avatar, job, f"{job}/video"):
            assert problem(client.get(path, headers=TWO)) == (404, "not_found")
            assert client.get(path, headers=ONE).status_code == 200
        for path in (avatar, job):
            assert problem(client.delete(path, headers=TWO)) == (404, "not_found")
        form = {"files": {"audio": ("a", sound(0.2))}, "data": {"size": "128"}}
        form["data"] |= {"avatar_id": made.json()["avatar_id"]}
        assert client.post("/animate", headers=TWO, **form).status_code == 404
        assert client.post("/animate", headers=ONE, **form).status_code == 200
        with stream_to(keyed.url, TWO) as stream:
            stream.start(avatar_id=made.json()["avatar_id"])
            assert stream.close_code() == 1008
            assert stream.texts[-1]["code"] == "not_found"
        for path in (avatar, job):
            assert client.delete(path, headers=ONE).status_code == 204


def test_keys_can_share(shared: Service) -> None:
    with shared.client() as client:
        made = client.post("/avatars", files={"portrait": ("p.png", picture())}, headers=ONE)
        path = f"/avatars/{made.json()['avatar_id']}"
        assert client.get(path, headers=TWO).status_code == 200


@pytest.mark.parametrize(
    "text", ["x", "../x", "a:out", 24 * "A", 24 * "a" + ":out", 25 * "a", "%00"]
)
def test_invalid_ids_do_not_reach_redis(service: Service, text: str) -> None:
    with service.client() as client:
        for path in (f"/jobs/{text}", f"/jobs/{text}/video", f"/avatars/{text}"):
            assert problem(client.get(path)) == (404, "not_found")
        answer = client.post(
            "/animate", files={"audio": ("a", sound(0.1))}, data={"avatar_id": text}
        )
        assert problem(answer) == (404, "not_found")


def test_wrong_methods_list_the_allowed_ones(service: Service) -> None:
    with service.client() as client:
        answer = client.put("/animate")
        assert problem(answer) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("charset", ["utf-7", "idna", "punycode", "undefined", "x" * 500, "base64"])
def test_odd_charsets(service: Service, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n\xff\xfe7\r\n--b--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    with service.client() as client:
        answer = client.post("/animate", content=body, headers=headers)
        assert problem(answer) == (400, "bad_request")


def test_every_response_forbids_sniffing_and_framing(service: Service) -> None:
    with service.client() as client:
        answers = [
            client.get(path)
            for path in ("/", "/docs", "/openapi.json", "/models", "/none", "/metrics")
        ]
        answers += [animate(client), client.put("/animate")]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff", answer.url
        assert answer.headers["x-frame-options"] == "DENY", answer.url


def test_the_api_reference_loads_nothing_from_other_origins(service: Service) -> None:
    with service.client() as client:
        page = client.get("/docs")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(sources) >= 3
        for source in sources:
            assert source.startswith("/static/")
            assert client.get(source).status_code == 200


def test_openapi_describes_problem_documents(service: Service) -> None:
    with service.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    for path, calls in paths.items():
        for call in calls.values():
            kinds = call["responses"]["4XX"]["content"] if path != "/healthz" else {}
            assert set(kinds) <= {"application/problem+json"}, json.dumps(call)


def test_an_invalid_forwarded_address_is_rejected(shared: Service) -> None:
    with shared.client() as client:
        good = client.get("/models", headers={"X-Forwarded-For": "203.0.113.9", **ONE})
        assert good.status_code == 200
        bad = client.get("/models", headers={"X-Forwarded-For": "<script>", **ONE})
        assert problem(bad) == (400, "bad_request")
    assert "203.0.113.9" in shared.log.read_text()
    assert "<script>" not in shared.log.read_text()


def test_unknown_methods_are_not_echoed(service: Service) -> None:
    method = "INVENTED" + "Q" * 2000
    with service.client() as client:
        for n in range(20):
            answer = client.request(f"{method}{n}", "/models")
            assert problem(answer) == (405, "method_not_allowed")
            assert "INVENTED" not in answer.text
        figures = client.get("/metrics").text
    assert "INVENTED" not in figures and "INVENTED" not in service.log.read_text()

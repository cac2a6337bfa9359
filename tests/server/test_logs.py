"""Log lines of the real service in both formats: they hold ids and no secrets."""

from __future__ import annotations

import base64
import contextvars
import json
import logging
from typing import Any

import httpx
import pytest

from server import logs
from tests.server.media_files import POISON, picture, sound
from tests.server.service import FAKE, Service, running
from tests.server.stream_client import pcm, stream_to

KEY = "not-for-any-log-file"


def work(service: Service) -> dict[str, str]:
    """Run a successful job, a failing one and a live session; return their ids."""
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(0.4))}
    headers = {"X-API-Key": KEY, "X-Request-Id": "mine.1"}
    with service.client() as client:
        made = client.post("/animate?key=query", files=files, data={"size": "128"}, headers=headers)
        assert made.headers["x-request-id"] == "mine.1"
        headers["X-Request-Id"] = "bad id\x7f"
        failing = {**files, "portrait": ("p.png", picture(POISON)), "audio": ("a", sound(3.0))}
        with pytest.raises(httpx.RemoteProtocolError):  # the response ends early
            client.post("/animate", files=failing, data={"size": "128"}, headers=headers)
        wrong = client.get("/models", headers={"Authorization": f"Bearer {KEY}x"})
        assert wrong.status_code == 401
        assert client.get("/healthz").status_code == 200
    with stream_to(service.url, {"X-API-Key": KEY}) as stream:
        stream.start()
        stream.send_audio(pcm(0.4))
        stream.finish()
    return {"animate": made.headers["x-job-id"], "live": stream.texts[0]["session_id"]}


def test_json_lines_hold_ids_and_no_secrets() -> None:
    with running({**FAKE, "FADA_LOG_FORMAT": "json", "FADA_API_KEYS": KEY}) as service:
        ids = work(service)
        service.stop()
        text = service.log.read_text()
    for secret in (KEY, "key=query", base64.b64encode(picture()).decode()[:60], "PNG", "fLaC"):
        assert secret not in text
    assert "/healthz" not in text
    for job_id in ids.values():  # by the API and by the worker
        assert sum(job_id in line for line in text.splitlines()) >= 2
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
    about = [line for line in lines if line.get("job") == ids["animate"]]
    assert {line["logger"] for line in about} == {"fada.access", "fada.worker"}
    access = [line for line in lines if line["logger"] == "fada.access"]
    # A request's line may come after the next one's.
    assert sorted((a["method"], a["path"], a["status"]) for a in access) == [
        ("GET", "/models", 401), ("POST", "/animate", 200), ("POST", "/animate", 200),
        ("WS", "/stream", 1000),
    ]  # fmt: skip
    (mine,) = [a for a in access if a["request"] == "mine.1"]
    assert mine["path"] == "/animate" and mine["duration_ms"] > 0
    assert all(a["request"] != "bad id\x7f" for a in access)
    (failure,) = [line for line in lines if "exception" in line]
    assert "this window is poisoned" in failure["exception"]


def test_text_lines_end_with_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]

    def one_task() -> None:
        logs.bind(request="r1")
        logs.bind(job="j1")
        logging.getLogger("fada.test").info("a job of %d frames", 3)

    try:
        logs.configure("text")
        contextvars.copy_context().run(one_task)
        logging.getLogger("fada.test").info("the service goes on")
    finally:
        logging.basicConfig(handlers=before, force=True)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("fada.test a job of 3 frames [request=r1 job=j1]")
    assert second.endswith("fada.test the service goes on")

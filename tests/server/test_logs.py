"""Log lines of the real service, in both forms: ids in them, secrets not."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from tests.server.media_files import POISON, picture, sound
from tests.server.service import FAKE, Service, running
from tests.server.stream_client import pcm, stream_to

KEY = "not-for-any-log"


def work(service: Service) -> dict[str, str]:
    """One job that is done, one that fails, one live session; their ids."""
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(0.4))}
    headers = {"X-API-Key": KEY, "X-Request-Id": "mine.1"}
    with service.client() as client:
        made = client.post("/animate?key=query", files=files, data={"size": "128"}, headers=headers)
        assert made.headers["x-request-id"] == "mine.1"
        headers["X-Request-Id"] = "bad id\x7f"
        failing = {**files, "portrait": ("p.png", picture(POISON)), "audio": ("a", sound(3.0))}
        with pytest.raises(httpx.RemoteProtocolError):  # it breaks off
            client.post("/animate", files=failing, data={"size": "128"}, headers=headers)
        wrong = client.get("/models", headers={"Authorization": f"Bearer {KEY}x"})
        assert wrong.status_code == 401
        assert client.get("/healthz").status_code == 200
    with stream_to(service.url, {"X-API-Key": KEY}) as stream:
        stream.start()
        stream.speak(pcm(0.4))
        stream.finish()
    return {"animate": made.headers["x-job-id"], "live": stream.said[0]["session_id"]}


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_tell_what_they_are_about_and_no_secret(form: str) -> None:
    with running({**FAKE, "FADA_LOG_FORMAT": form, "FADA_API_KEYS": KEY}) as service:
        ids = work(service)
        service.stop()
        text = service.log.read_text()
    for secret in (KEY, "key=query", base64.b64encode(picture()).decode()[:60], "PNG", "fLaC"):
        assert secret not in text
    assert "/healthz" not in text
    for job_id in ids.values():  # by the API and by the worker
        assert sum(job_id in line for line in text.splitlines()) >= 2
    if form == "text":
        assert "POST /animate 200 in" in text and f"[request=mine.1 job={ids['animate']}]" in text
        return
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
    about = [line for line in lines if line.get("job") == ids["animate"]]
    assert {line["logger"] for line in about} == {"fada.access", "fada.worker"}
    access = [line for line in lines if line["logger"] == "fada.access"]
    assert [(a["method"], a["path"], a["status"]) for a in access] == [
        ("POST", "/animate", 200), ("POST", "/animate", 200), ("GET", "/models", 401),
        ("WS", "/stream", 1000),
    ]  # fmt: skip
    assert access[0]["request"] == "mine.1" and access[0]["duration_ms"] > 0
    assert access[1]["request"] != "bad id\x7f"
    (failure,) = [line for line in lines if "exception" in line]
    assert "this window is poisoned" in failure["exception"]

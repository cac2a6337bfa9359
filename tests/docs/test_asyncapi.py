"""docs/guide/asyncapi.yaml says what the code of `GET /stream` takes and sends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema_rs
import pytest
import yaml

from server.api import live, protocol
from server.broker.messages import LIVE_OPTIONS
from server.errors import KINDS
from tests.docs.test_api_page import names, section, table
from tests.server.service import FAKE, ROOT, Service, running
from tests.server.stream_client import Stream, pcm, stream_to

DOCUMENT = yaml.safe_load((ROOT / "docs/guide/asyncapi.yaml").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
BINARY = {"audio", "media"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(FAKE) as service:
        yield service


def check(message: dict[str, Any]) -> None:
    """Raises where ``message`` is not as the document says."""
    reference = f"#/components/schemas/{message['type']}"
    jsonschema_rs.Draft202012Validator({**DOCUMENT, "$ref": reference}).validate(message)


def allows(message: dict[str, Any]) -> bool:
    try:
        check(message)
    except jsonschema_rs.ValidationError:
        return False
    return True


def operation(name: str) -> set[str]:
    parts = DOCUMENT["operations"][name]["messages"]
    return {part["$ref"].rpartition("/")[2] for part in parts}


def test_every_message_of_the_page_and_no_other() -> None:
    rows = [row[0] for row in table(section("## WebSocket `GET /stream`"))]
    texts = {name for row in rows for name in names(row) if row.startswith("text `")}
    assert operation("speak") | operation("show") == texts | BINARY
    channel = DOCUMENT["channels"]["stream"]["messages"]
    assert set(channel) == set(DOCUMENT["components"]["messages"]) == texts | BINARY
    assert set(SCHEMAS) == texts | {"options"}


def test_every_option_with_its_range() -> None:
    def stated(schema: dict[str, Any]) -> dict[str, Any]:
        kinds = schema.get("anyOf", [schema])
        kept = ("type", "enum", "minimum", "maximum", "multipleOf", "maxLength")
        return {key: value for key, value in kinds[0].items() if key in kept}

    ours = protocol.AnimationOptions.model_json_schema()["properties"]
    documented = SCHEMAS["options"]["properties"]
    assert {name: stated(one) for name, one in documented.items()} == {
        name: stated(one) for name, one in ours.items()
    }
    for name, one in ours.items():
        assert documented[name].get("default") == one["default"], name
    assert set(SCHEMAS["update"]["properties"]) == {"type", *LIVE_OPTIONS}
    assert SCHEMAS["state"]["properties"]["state"]["enum"] == [*get_args(protocol.FaceState)]
    assert SCHEMAS["error"]["properties"]["code"]["enum"] == [*KINDS]


def test_every_field_of_start() -> None:
    own = SCHEMAS["start"]["allOf"][1]["properties"]
    fields = protocol.LiveStart.model_fields
    assert set(own) - {"type"} == set(fields) - {"options"}
    for name in ("sample_rate", "idle"):
        assert own[name]["default"] == fields[name].default
    assert str(live.MAX_PORTRAIT_BYTES) in own["portrait"]["description"]


def test_what_is_refused_is_not_in_the_document() -> None:
    assert allows({"type": "start", "avatar_id": "a", "size": 128, "idle": True})
    for wrong in (
        {"type": "start"},
        {"type": "start", "avatar_id": "a", "portrait": "b"},
        {"type": "start", "avatar_id": "a", "size": 127},
        {"type": "start", "avatar_id": "a", "output": "mesh"},
        {"type": "start", "avatar_id": "a", "seconds": 1},
        {"type": "update", "size": 128},
        {"type": "state", "state": "asleep"},
        {"type": "interrupt", "now": True},
    ):
        assert not allows(wrong), wrong


def sent(stream: Stream, kind: str, **fields: Any) -> None:
    check({"type": kind, **fields})
    stream.send(kind, **fields)


@pytest.mark.parametrize("output", ["video", "motion"])
def test_what_is_sent_and_received_is_as_documented(service: Service, output: str) -> None:
    with stream_to(service.url) as stream:
        stream.start(output=output, idle=True)
        stream.send_audio(pcm(1.0))
        sent(stream, "update", emotion="happy", steps=3)
        sent(stream, "state", state="listening")
        stream.until("motion" if output == "motion" else "fragment")
        sent(stream, "interrupt")
        stream.until("interrupted")
        known = {name: stream.texts[0][name] for name in ("session_id", "token")}
        stream.socket.socket.shutdown(2)
    with stream_to(service.url) as again:
        sent(again, "resume", **known, next_index=1, interrupted=0)
        sent(again, "end")
        assert again.close_code() == 1000
    with stream_to(service.url) as failed:
        failed.send("start", avatar_id="0" * 24, output=output)
        assert failed.close_code() == 1008
    texts = [*stream.texts, *again.texts, *failed.texts]
    for text in texts:
        check(text)
    seen = {text["type"] for text in texts}
    other = {"fragment", "motion"} - {"motion" if output == "motion" else "fragment"}
    assert seen == operation("show") - other - BINARY
    assert bool(stream.data) == (output == "video")


def test_close_codes_and_limits_are_those_of_the_page() -> None:
    text = (ROOT / "docs/guide/asyncapi.yaml").read_text()
    page = section("## WebSocket `GET /stream`")
    for row in table(page):
        if row[0] in ("a binary message", "`portrait` in `start`"):
            assert re.split(r"[ ;]", row[1])[0] in text
    codes = re.findall(r"\b10\d\d\b", DOCUMENT["channels"]["stream"]["description"])
    assert codes and all(code in page for code in codes)

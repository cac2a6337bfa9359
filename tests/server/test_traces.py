"""Traces: spans of the real service arrive at a configured OTLP endpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.traces import _is_enabled
from tests.server.media_files import picture, sound
from tests.server.service import FAKE, running

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP endpoint and the (service, span) pairs that it has received."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                facts = {a.key: a.value.string_value for a in group.resource.attributes}
                for scope in group.scope_spans:
                    spans.extend((facts["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


def facts(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_and_its_job_are_one_trace() -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(0.4))}
    with collector() as (url, spans):
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        with running({**FAKE, **settings}) as service:
            with service.client() as client:
                made = client.post("/animate", files=files, data={"size": "128"}, headers=headers)
            assert service.stop() == 0
    ours = {span.name: (name, span) for name, span in spans if span.trace_id.hex() == trace_id}
    service_name, span = ours["POST /animate"]
    assert service_name == "fada-api"
    assert facts(span)["status"] == 200
    worker_name, job = ours["animate job"]
    assert worker_name == "fada-worker"
    by_id = {span.span_id: (name, span) for name, span in spans}
    asker_name, asker = by_id[job.parent_span_id]  # FastAPI has a span of its own within ours
    assert asker_name == "fada-api"
    assert facts(asker)["job"] == made.headers["x-job-id"]


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_which_variables_enable_traces(environment: dict[str, str], asked: bool) -> None:
    assert _is_enabled(environment) == asked

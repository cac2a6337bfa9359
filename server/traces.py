"""OpenTelemetry traces, where they are asked for; nothing otherwise."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

try:
    from opentelemetry import propagate, trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    INSTALLED = True
except ImportError:
    INSTALLED = False

log = logging.getLogger("fada.traces")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def configure(role: str) -> None:
    """Send spans to the OTLP endpoint of the environment, if it names one.

    Says so in the log when it cannot: without the packages, or for a protocol but HTTP.
    """
    if not _asked(os.environ):
        return
    if not INSTALLED:
        log.warning("no traces: OTEL_* asks for them, but the packages of fada[otel] are missing")
        return
    protocol = next((os.environ[n] for n in _PROTOCOLS if os.environ.get(n)), "http/protobuf")
    if protocol != "http/protobuf":
        log.warning("no traces: OTEL_* asks for %s, only http/protobuf is known", protocol)
        return
    name = os.environ.get("OTEL_SERVICE_NAME", f"fada-{role}")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _asked(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER")
    return exporter == "otlp" or (
        not exporter and any(environment.get(name) for name in _ENDPOINTS)
    )


@contextmanager
def span(name: str, parent: Mapping[str, str], **facts: str | int) -> Iterator[None]:
    """A span for as long as the block runs; ``parent`` holds ``traceparent``, or nothing."""
    if not INSTALLED:
        yield
        return
    tracer = trace.get_tracer("fada")
    with tracer.start_as_current_span(name, propagate.extract(parent), attributes=facts):
        yield


def note(name: str | None = None, **facts: str | int) -> None:
    """What is known of the current span only within it: facts, and a better name."""
    if not INSTALLED:
        return
    current = trace.get_current_span()
    current.set_attributes(facts)
    if name is not None:
        current.update_name(name)


def here() -> dict[str, str]:
    """What `span` needs as ``parent`` in another process to go on with this trace."""
    carrier: dict[str, str] = {}
    if INSTALLED:
        propagate.inject(carrier)
    return carrier

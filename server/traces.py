"""OpenTelemetry traces, if the environment configures them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

try:
    from opentelemetry import propagate, trace

    INSTALLED = find_spec("opentelemetry.exporter.otlp.proto.http") is not None
except ImportError:
    INSTALLED = False

log = logging.getLogger("fada.traces")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def configure(role: str) -> None:
    """Export spans to the OTLP endpoint that the environment names, if any.

    ``role`` is ``api`` or ``worker``. Logs a warning if the packages are missing or the protocol
    is not HTTP.
    """
    if not _is_enabled(os.environ):
        return
    if not INSTALLED:
        log.warning("traces are off: OTEL_* enables them, but fada[otel] is not installed")
        return
    protocol = next((os.environ[n] for n in _PROTOCOLS if os.environ.get(n)), "http/protobuf")
    if protocol != "http/protobuf":
        log.warning("traces are off: OTEL protocol = %s, expected http/protobuf", protocol)
        return
    # Slow to import, and most services are not traced.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", f"fada-{role}")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _is_enabled(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER")
    return exporter == "otlp" or (
        not exporter and any(environment.get(name) for name in _ENDPOINTS)
    )


@contextmanager
def span(name: str, parent: Mapping[str, str], **attributes: str | int) -> Iterator[None]:
    """Run the block in a span; ``parent`` holds a ``traceparent``, or nothing."""
    if not INSTALLED:
        yield
        return
    tracer = trace.get_tracer("fada")
    with tracer.start_as_current_span(name, propagate.extract(parent), attributes=attributes):
        yield


def annotate(name: str | None = None, **attributes: str | int) -> None:
    """Add attributes to the current span, and rename it."""
    if not INSTALLED:
        return
    current = trace.get_current_span()
    current.set_attributes(attributes)
    if name is not None:
        current.update_name(name)


def current() -> dict[str, str]:
    """The current span as the ``parent`` of a `span` in another process."""
    carrier: dict[str, str] = {}
    if INSTALLED:
        propagate.inject(carrier)
    return carrier

"""Prometheus metrics of every process, merged under ``GET /metrics``.

Each process stores a copy of its metrics in Redis; any API process merges them, with ``process`` as
a label. Times are seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from server.broker import redis, reservations
from server.broker.liveness import live_workers
from server.broker.redis import Connection
from server.tasks import background

log = logging.getLogger("fada.metrics")

REPORT_S = 2.0
_COPY_TTL_S = 6
_PROCESSES = "fada:metrics"

_registry = CollectorRegistry()
ProcessCollector(registry=_registry)

_FINE = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5, 1.0, 2.5)
_WAITS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)

_sessions = Gauge("fada_sessions", "Jobs that workers are running.", ["kind"], registry=_registry)
_jobs = Counter(
    "fada_jobs",
    "Jobs that workers ended or released, by outcome: done, aborted, reader_gone, released, or an "
    "error code.",
    ["kind", "outcome"], registry=_registry,
)  # fmt: skip
_batch = Histogram(
    "fada_batch_windows", "Windows in one batch.",
    buckets=(1, 2, 3, 4, 5, 6, 7, 8, 12, 16), registry=_registry,
)  # fmt: skip
_stage = Histogram(
    "fada_stage_seconds",
    "Time in each stage: a window in the queue (queue), a batch in the network (denoise), a "
    "fragment being rendered, encoded and published (draw, encode, publish).",
    ["stage"], buckets=_FINE, registry=_registry,
)  # fmt: skip
_fragments = Counter("fada_fragments", "Fragments published.", ["kind"], registry=_registry)
_video = Counter("fada_video_seconds", "Seconds of video published.", ["kind"], registry=_registry)
_half_rate = Counter(
    "fada_half_rate_video_seconds",
    "Seconds of live video at half the frame rate, which late sessions make on a busy machine.",
    registry=_registry,
)
_real_time = Histogram(
    "fada_real_time_factor", "Seconds of video made per second, over a whole animation.",
    buckets=_RATIOS, registry=_registry,
)  # fmt: skip
_first = Histogram(
    "fada_first_fragment_seconds", "From the complete request to its first fragment.",
    ["kind"], buckets=_WAITS, registry=_registry,
)  # fmt: skip
_microphone = Histogram(
    "fada_mic_to_fragment_seconds",
    "From the arrival of a live fragment's first audio to the fragment being sent. Includes the "
    "wait of audio that is sent faster than real time.",
    buckets=_WAITS, registry=_registry,
)  # fmt: skip
_load = Histogram(
    "fada_live_load", "Time that making a live window took, by its media time; above 1 it is late.",
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0), registry=_registry,
)  # fmt: skip
_requests = Counter(
    "fada_requests", "Responses by route and status (for /stream, the close code).",
    ["method", "route", "status"], registry=_registry,
)  # fmt: skip
_errors = Counter("fada_errors", "Errors sent to clients, by code.", ["code"], registry=_registry)
_connections = Gauge("fada_streams", "Open live sessions.", registry=_registry)


def process_name(role: str) -> str:
    """This process's name in the ``process`` label; ``role`` is ``api`` or ``worker``."""
    return f"{role}-{socket.gethostname()}-{os.getpid()}"


def stage(name: str, seconds: float) -> None:
    """Record time in a stage: queue, denoise, draw, encode or publish."""
    _stage.labels(name).observe(seconds)


@contextmanager
def timed_stage(name: str) -> Iterator[None]:
    """Record the time that the block takes as `stage`."""
    start_s = time.monotonic()
    try:
        yield
    finally:
        stage(name, time.monotonic() - start_s)


def batch(windows: int) -> None:
    """Record the number of windows in a batch."""
    _batch.observe(windows)


@contextmanager
def job(kind: str) -> Iterator[None]:
    """Count a job as running while the block runs."""
    _sessions.labels(kind).inc()
    try:
        yield
    finally:
        _sessions.labels(kind).dec()


def job_ended(kind: str, outcome: str) -> None:
    """Count a job that a worker ended or released.

    ``outcome`` is ``done``, a code of `server.errors`, ``aborted`` (cancelled, expired or lost to
    another worker), ``reader_gone``, or ``released`` (handed over).
    """
    _jobs.labels(kind, outcome).inc()


def fragment(kind: str, seconds: float) -> None:
    """Count a published fragment; ``kind`` is ``speech`` or ``idle``."""
    _fragments.labels(kind).inc()
    _video.labels(kind).inc(seconds)


def real_time_factor(video_s: float, seconds: float) -> None:
    """Record that a whole animation of ``video_s`` took ``seconds`` to make."""
    _real_time.observe(video_s / seconds)


def first_fragment(kind: str, seconds: float) -> None:
    """Record the time from a complete request to its first fragment."""
    _first.labels(kind).observe(seconds)


def mic_to_fragment(seconds: float) -> None:
    """Record the time from a fragment's first audio to the fragment."""
    _microphone.observe(seconds)


def live_load(took_s: float, media_s: float) -> None:
    """Record that a live window of ``media_s`` was made in ``took_s``, without waiting."""
    _load.observe(took_s / media_s)


def half_rate(seconds: float) -> None:
    """Count live video at half the frame rate."""
    _half_rate.inc(seconds)


def request(method: str, route: str, status: str) -> None:
    """Count a response; each label must come from a fixed set."""
    _requests.labels(method, route, status).inc()


def error(code: str) -> None:
    """Count an error sent to a client."""
    _errors.labels(code).inc()


@contextmanager
def stream_open() -> Iterator[None]:
    """Count a WebSocket as open while the block runs."""
    with _connections.track_inprogress():
        yield


def snapshot() -> bytes:
    """This process's metrics, serialised for `render`."""
    families = [
        [m.name, m.documentation, m.type, [[s.name, s.labels, s.value] for s in m.samples
                                           if not s.name.endswith("_created")]]
        for m in _registry.collect()
    ]  # fmt: skip
    return json.dumps(families).encode()


@asynccontextmanager
async def reporting(connection: Connection, role: str) -> AsyncIterator[None]:
    """Store a copy of this process's metrics in Redis every `REPORT_S` while the block runs."""
    async with background(_report(connection, process_name(role))):
        yield


async def _report(connection: Connection, process: str) -> None:
    while True:
        try:
            await connection.redis.set(_key(process), snapshot(), ex=_COPY_TTL_S)
            await connection.redis.sadd(_PROCESSES, process)
        except RedisError as error:
            log.warning("cannot report metrics: %s", error)
        await asyncio.sleep(REPORT_S)


async def render(connection: Connection, process: str) -> bytes:
    """All processes' metrics in Prometheus's text format; ``process`` is this one's name."""
    copies = await _copies(connection)
    copies[process] = snapshot()
    return generate_latest(_MergedCollector(copies, await _service(connection)))


async def _copies(connection: Connection) -> dict[str, bytes]:
    names = sorted(await connection.redis.smembers(_PROCESSES))
    if not names:
        return {}
    copies = await connection.redis.mget([_key(name.decode()) for name in names])
    expired = [name for name, copy in zip(names, copies, strict=True) if copy is None]
    if expired:
        await connection.redis.srem(_PROCESSES, *expired)
    pairs = zip(names, copies, strict=True)
    return {name.decode(): copy for name, copy in pairs if copy is not None}


async def _service(connection: Connection) -> list[Metric]:
    """Metrics of the whole service, computed from what is in Redis."""
    jobs = GaugeMetricFamily("fada_queue_jobs", "Jobs in the queues.", labels=["kind", "state"])
    for kind in redis.QUEUES:
        queue = redis.queue_key(kind)
        length, running = await connection.redis.xlen(queue), 0
        if await connection.redis.exists(queue):
            running = (await connection.redis.xpending(queue, redis.GROUP))["pending"]
        jobs.add_metric([kind, "queued"], max(0, length - running))
        jobs.add_metric([kind, "running"], running)
    workers = (await live_workers(connection)).values()
    places = GaugeMetricFamily(
        "fada_live_places",
        "Places for live sessions, as measured by the workers.",
        labels=["state"],
    )
    places.add_metric(["taken"], sum(worker.live_running for worker in workers))
    places.add_metric(["all"], sum(worker.live_places for worker in workers))
    avatars = 0
    for owner in await connection.redis.smembers(redis.OWNERS):
        avatars += await connection.redis.zcard(redis.avatars_key(owner.decode()))
    reserved = GaugeMetricFamily(
        "fada_reserved_bytes", "Reserved for uploads and kept videos.", labels=["store"]
    )
    amount = await reservations.reserved(connection)
    reserved.add_metric(["redis"], amount.redis_bytes)
    reserved.add_metric(["folder"], amount.folder_bytes)
    memory = await connection.redis.info("memory")
    return [
        jobs,
        reserved,
        places,
        GaugeMetricFamily("fada_workers", "Live workers.", len(workers)),
        GaugeMetricFamily("fada_avatars", "Avatars stored.", avatars),
        GaugeMetricFamily(
            "fada_broker_memory_bytes", "Memory that Redis uses.", int(memory["used_memory"])
        ),
        GaugeMetricFamily(
            "fada_broker_memory_limit_bytes",
            "Memory that Redis may use; 0: no limit.",
            int(memory["maxmemory"]),
        ),
    ]


class _MergedCollector(Collector):
    """Merges the metrics of several processes into one family for each name."""

    def __init__(self, copies: dict[str, bytes], service: Iterable[Metric]) -> None:
        self._copies = copies
        self._service = service

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for process, copy in sorted(self._copies.items()):
            family: Any
            for family in json.loads(copy):
                name, documentation, kind, samples = family
                metric = families.setdefault(name, Metric(name, documentation, kind))
                for sample, labels, value in samples:
                    metric.add_sample(sample, {**labels, "process": process}, value)
        yield from self._service
        yield from families.values()


def _key(process: str) -> str:
    return f"fada:metrics:{process}"

"""What is measured, and how the figures of every process come together under ``GET /metrics``.

Times are seconds. Figures are Prometheus's: counters only grow, so rates and quantiles come from
queries over them, and ``process`` tells whose they are.
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

from server.broker import redis
from server.broker.liveness import live_workers
from server.broker.redis import Connection

log = logging.getLogger("fada.metrics")

REPORT_S = 2.0
_KEPT_S = 6
_PROCESSES = "fada:metrics"

_registry = CollectorRegistry()
ProcessCollector(registry=_registry)

_FINE = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5, 1.0, 2.5)
_WAITS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)

_sessions = Gauge("fada_sessions", "Jobs in a worker's hands.", ["kind"], registry=_registry)
_jobs = Counter(
    "fada_jobs", "Jobs ended here, by outcome: done, aborted, reader_gone, released, or a code.",
    ["kind", "outcome"],
    registry=_registry,
)  # fmt: skip
_batch = Histogram(
    "fada_batch_windows", "Windows that the network ran at once.",
    buckets=(1, 2, 3, 4, 5, 6, 7, 8, 12, 16), registry=_registry,
)  # fmt: skip
_stage = Histogram(
    "fada_stage_seconds",
    "A window waiting (queue), a batch in the network (denoise), a fragment drawn, encoded and "
    "published (draw, encode, publish).",
    ["stage"], buckets=_FINE, registry=_registry,
)  # fmt: skip
_fragments = Counter("fada_fragments", "Fragments published.", ["kind"], registry=_registry)
_video = Counter("fada_video_seconds", "Video published.", ["kind"], registry=_registry)
_real_time = Histogram(
    "fada_real_time_factor", "Seconds of video a second, over one whole animation.",
    buckets=_RATIOS, registry=_registry,
)  # fmt: skip
_first = Histogram(
    "fada_first_fragment_seconds", "From the whole request to its first fragment sent.",
    ["kind"], buckets=_WAITS, registry=_registry,
)  # fmt: skip
_microphone = Histogram(
    "fada_mic_to_fragment_seconds",
    "From the first sound of a live fragment coming in to the fragment going out. Sound that is "
    "sent faster than it is spoken waits, and that counts.",
    buckets=_WAITS, registry=_registry,
)  # fmt: skip
_requests = Counter(
    "fada_requests", "Answers by route and status (for /stream, the close code).",
    ["method", "route", "status"], registry=_registry,
)  # fmt: skip
_errors = Counter("fada_errors", "Errors told to clients, by code.", ["code"], registry=_registry)
_connections = Gauge("fada_streams", "WebSockets open on /stream.", registry=_registry)


def process_name(role: str) -> str:
    """What `reporting` and `render` call this process."""
    return f"{role}-{socket.gethostname()}-{os.getpid()}"


def stage(name: str, seconds: float) -> None:
    """Something spent so long in a stage: queue, denoise, draw, encode or publish."""
    _stage.labels(name).observe(seconds)


@contextmanager
def staged(name: str) -> Iterator[None]:
    """`stage`, for as long as the block runs."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        stage(name, time.monotonic() - began_s)


def batch(windows: int) -> None:
    """The network ran so many windows at once."""
    _batch.observe(windows)


@contextmanager
def job(kind: str) -> Iterator[None]:
    """A job is in hand for as long as the block runs."""
    _sessions.labels(kind).inc()
    try:
        yield
    finally:
        _sessions.labels(kind).dec()


def job_ended(kind: str, outcome: str) -> None:
    """``outcome`` is ``done``, a code of `server.errors`, ``aborted`` (cancelled, or read no more),
    ``reader_gone``, or ``released`` (to another worker).
    """
    _jobs.labels(kind, outcome).inc()


def fragment(kind: str, seconds: float) -> None:
    """A fragment of so much video was published; ``kind`` as in the stream: speech or idle."""
    _fragments.labels(kind).inc()
    _video.labels(kind).inc(seconds)


def real_time_factor(video_s: float, seconds: float) -> None:
    """A whole animation of ``video_s`` was made in ``seconds``."""
    _real_time.observe(video_s / seconds)


def first_fragment(kind: str, seconds: float) -> None:
    _first.labels(kind).observe(seconds)


def mic_to_fragment(seconds: float) -> None:
    _microphone.observe(seconds)


def request(method: str, route: str, status: str) -> None:
    """An answer; each label is one of a fixed set."""
    _requests.labels(method, route, status).inc()


def error(code: str) -> None:
    _errors.labels(code).inc()


@contextmanager
def stream_open() -> Iterator[None]:
    with _connections.track_inprogress():
        yield


def snapshot() -> bytes:
    """This process's figures, for `render`."""
    families = [
        [m.name, m.documentation, m.type, [[s.name, s.labels, s.value] for s in m.samples
                                           if not s.name.endswith("_created")]]
        for m in _registry.collect()
    ]  # fmt: skip
    return json.dumps(families).encode()


@asynccontextmanager
async def reporting(connection: Connection, role: str) -> AsyncIterator[None]:
    """Leave a copy of this process's figures in Redis, again and again, while the block runs."""
    task = asyncio.create_task(_report(connection, process_name(role)))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _report(connection: Connection, process: str) -> None:
    while True:
        try:
            await connection.redis.set(_key(process), snapshot(), ex=_KEPT_S)
            await connection.redis.sadd(_PROCESSES, process)
        except RedisError as error:
            log.warning("the figures could not be reported: %s", error)
        await asyncio.sleep(REPORT_S)


async def render(connection: Connection, process: str) -> bytes:
    """Everybody's figures as Prometheus's text; those of ``process``, this one, as of now."""
    copies = await _copies(connection)
    copies[process] = snapshot()
    return generate_latest(_Together(copies, await _service(connection)))


async def _copies(connection: Connection) -> dict[str, bytes]:
    names = sorted(await connection.redis.smembers(_PROCESSES))
    if not names:
        return {}
    copies = await connection.redis.mget([_key(name.decode()) for name in names])
    gone = [name for name, copy in zip(names, copies, strict=True) if copy is None]
    if gone:
        await connection.redis.srem(_PROCESSES, *gone)
    pairs = zip(names, copies, strict=True)
    return {name.decode(): copy for name, copy in pairs if copy is not None}


async def _service(connection: Connection) -> list[Metric]:
    """What Redis itself knows: one figure for the whole service."""
    jobs = GaugeMetricFamily("fada_queue_jobs", "Jobs in the queues.", labels=["kind", "state"])
    for kind in redis.QUEUES:
        queue = redis.queue_key(kind)
        length, running = await connection.redis.xlen(queue), 0
        if await connection.redis.exists(queue):
            running = (await connection.redis.xpending(queue, redis.GROUP))["pending"]
        jobs.add_metric([kind, "queued"], max(0, length - running))
        jobs.add_metric([kind, "running"], running)
    beats = (await live_workers(connection)).values()
    places = GaugeMetricFamily(
        "fada_live_places", "Places for live sessions, by the workers' measure.", labels=["state"]
    )
    places.add_metric(["taken"], sum(beat.live_running for beat in beats))
    places.add_metric(["all"], sum(beat.live_places for beat in beats))
    avatars = 0
    for owner in await connection.redis.smembers(redis.OWNERS):
        avatars += await connection.redis.zcard(redis.avatars_key(owner.decode()))
    used = int((await connection.redis.info("memory"))["used_memory"])
    return [
        jobs,
        places,
        GaugeMetricFamily("fada_workers", "Workers that live.", len(beats)),
        GaugeMetricFamily("fada_avatars", "Avatars kept.", avatars),
        GaugeMetricFamily("fada_broker_memory_bytes", "Memory that Redis uses.", used),
    ]


class _Together(Collector):
    """Families of the same name from several processes, as one family each."""

    def __init__(self, copies: dict[str, bytes], service: Iterable[Metric]) -> None:
        self._copies = copies
        self._service = service

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for process, copy in sorted(self._copies.items()):
            family: Any
            for family in json.loads(copy):
                name, words, kind, samples = family
                metric = families.setdefault(name, Metric(name, words, kind))
                for sample, labels, value in samples:
                    metric.add_sample(sample, {**labels, "process": process}, value)
        yield from self._service
        yield from families.values()


def _key(process: str) -> str:
    return f"fada:metrics:{process}"

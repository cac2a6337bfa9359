"""A live session between a client and a worker, whatever connects the client (`Channel`).

A client that sends audio faster than real time gets an error once `MAX_PENDING_S` are pending. TCP
backpressure would not do: it would hold an interrupt back behind the audio that it is to stop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from server import logs, metrics, traces
from server.api.dependencies import RequestContext, choose_model, require_avatar
from server.api.protocol import AI_GENERATED, LiveStart, parse_options, parse_state
from server.api.resume import Replay, Resume, expired
from server.api.uploads import check_portrait
from server.api.video import ClientGone, Detached, first_event, first_fragment_timed
from server.broker import attachment, messages
from server.broker.attachment import Attachment, InputPosition, KeptFragments, kept_bytes
from server.broker.producer import JobProducer, taken_over
from server.broker.redis import BROKER_LOST
from server.errors import ServiceError
from server.motion import MOTION_READY, motion_message
from server.tasks import cancel_and_wait

MAX_PENDING_S = 60
MAX_PORTRAIT_BYTES = 1 << 20  # larger ones are uploaded to /avatars
_CLOSE_S = 1.0  # how long after a failure to send the client's close may be read
_ARRIVAL_RESOLUTION_S = 0.02  # chunks this close count as one arrival, to keep the queue short


class Channel(Protocol):
    """The client's end of a live session."""

    async def receive(self) -> bytes | dict[str, Any]:
        """The next message: audio, or the fields of a command.

        Raises `ClientGone` when the client disconnects, `Detached` when it is cut off,
        `ServiceError` for an invalid message.
        """

    async def send(self, fields: dict[str, Any]) -> None:
        """Send an event."""

    async def send_media(self, data: bytes, pcm: bytes = b"") -> None:
        """Send the init segment, or a fragment with its sound if `live_job` was to have it."""


def parse_message(text: str | bytes, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a text message; raises `ServiceError` for anything else."""
    if len(text) > max_bytes:
        raise ServiceError(
            "too_large", f"the message has {len(text)} bytes, expected at most {max_bytes}"
        )
    try:
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False).encode()  # rejects lone surrogates
    except (ValueError, RecursionError) as error:
        raise ServiceError("bad_request", f"the message is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ServiceError(
            "bad_request", f"message = {type(fields).__name__}, expected a JSON object"
        )
    return fields


@asynccontextmanager
async def live_job(
    context: RequestContext,
    start: LiveStart,
    *,
    token: str = "",
    place: str = "",
    pcm: bool = False,
) -> AsyncIterator[str]:
    """Submit a live session and yield its id; see `ending`.

    With ``token`` its client may resume it; it holds ``place`` of its client's places. ``pcm``: its
    fragments come with their sound as samples too.
    """
    request, parts = await _request(context, start)
    request = request.model_copy(update={"token": token, "place": place, "pcm": pcm})
    job_id = await context.producer.submit(request, parts)
    async with ending(context.producer, job_id, resumable=bool(token)):
        yield job_id


@asynccontextmanager
async def ending(producer: JobProducer, job_id: str, *, resumable: bool) -> AsyncIterator[None]:
    """End a live session with the block, unless that raises `Detached`.

    What a ``resumable`` one sent last stays for a while: the client may have missed it.
    """
    logs.bind(job=job_id)
    traces.annotate(job=job_id)
    try:
        yield
    except Detached:
        raise
    except BaseException:
        await producer.abandon(job_id, live=True)
        raise
    if resumable:
        await producer.retire(job_id)
    else:
        await producer.abandon(job_id, live=True)


async def converse(
    channel: Channel,
    producer: JobProducer,
    job_id: str,
    *,
    sample_rate: int,
    start_s: float,
    token: str = "",
    resume: Resume | None = None,
) -> None:
    """Forward messages both ways until the session is done; ``start_s`` is when it was asked for.

    The client gets ``token``, by which it may ``resume``. Raises `ClientGone` when it disconnects,
    `Detached` when only its connection has ended, `ServiceError` when the session fails.
    """
    attached = await attachment.attach(producer.connection, job_id)
    if attached is None:
        raise expired() if resume is not None else ServiceError("not_found", "the job has expired")
    kept = KeptFragments(kept_bytes(producer.limits.redis_bytes, producer.max_jobs))
    events = producer.follow(
        job_id, consume=True, kept=kept if token else None, resumed=resume is not None
    )
    if resume is None:
        events = first_fragment_timed(events, "live", start_s)
    replay = None if resume is None else Replay(resume, attached)
    live = _LiveConnection(
        channel, producer, attached, sample_rate=sample_rate, token=token, replay=replay
    )
    receiving = asyncio.create_task(live.receive())
    sending = asyncio.create_task(live.send(events))
    staying = asyncio.create_task(_stay_attached(producer, attached))
    tasks = (receiving, sending, staying)
    error: BaseException | None = None
    try:
        # The client may be done sending while there is more to receive.
        while error is None and not sending.done():
            running = {task for task in tasks if not task.done()}
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            error = next((task.exception() for task in ended if task.exception()), None)
        if (
            isinstance(error, Detached) and not error.error
        ):  # sending may fail before a close is read
            await asyncio.wait({receiving}, timeout=_CLOSE_S)
            error = receiving.exception() if receiving.done() else error
    finally:
        await cancel_and_wait(tasks)
    if isinstance(error, ServiceError) and error.code == "taken_over":
        raise Detached(error)
    if isinstance(error, Detached) and not live.resumable:
        raise ClientGone
    if error is not None:
        # Another connection may have the session since a moment ago: it is not ours to end.
        with contextlib.suppress(*BROKER_LOST):
            if live.resumable and not await attachment.stay_attached(producer.connection, attached):
                raise Detached(taken_over())
        raise error


async def _stay_attached(producer: JobProducer, attached: Attachment) -> None:
    """Renew the hold for ever; raises `ServiceError` ``taken_over`` when another has it."""
    while True:
        await asyncio.sleep(attachment.HEARTBEAT_S)
        with contextlib.suppress(*BROKER_LOST):
            if not await attachment.stay_attached(producer.connection, attached):
                raise taken_over()


class _LiveConnection:
    """A started session: forwards messages both ways and bounds the pending audio."""

    def __init__(
        self,
        channel: Channel,
        producer: JobProducer,
        attached: Attachment,
        *,
        sample_rate: int,
        token: str,
        replay: Replay | None,
    ) -> None:
        self._channel, self._producer, self._attached = channel, producer, attached
        self._token, self._replay = token, replay
        self._max_pending_bytes = MAX_PENDING_S * sample_rate * 2
        self._arrivals = _AudioArrivals(sample_rate)
        position, consumed = attached.position, attached.consumed
        # Bytes of audio: received in all, before the last interrupt, and consumed by the worker.
        # Where an older worker has not stored the last of them, nothing counts as pending.
        self._received, self._dropped = position.received, position.dropped
        self._consumed = position.received if consumed is None else consumed
        self._arrivals.seek(self._consumed)
        self._commands = attached.commands
        self._ended, self._motion = position.ended, False
        self.resumable = replay is not None

    async def receive(self) -> None:
        """Forward the client's messages to the worker until the session ends.

        Raises `ClientGone` when the client disconnects, `ServiceError` for an invalid message.
        """
        while True:
            message = await self._channel.receive()
            command = self._audio(message) if isinstance(message, bytes) else self._command(message)
            self._commands += 1
            position = InputPosition(self._received, self._dropped, self._ended)
            if not await self._producer.send_command(
                self._attached.job_id,
                self._commands,
                command,
                by=self._attached,
                position=position,
            ):
                return  # the session has ended; its last event follows

    def _audio(self, pcm: bytes) -> messages.AudioChunk:
        if self._ended:
            raise ServiceError("bad_request", "audio after 'end'")
        self._received += len(pcm)
        self._arrivals.add(self._received, time.monotonic())
        # Audio that an interrupt drops takes memory until the worker has processed the interrupt.
        pending = self._received - max(self._consumed, self._dropped)
        limit = self._max_pending_bytes
        if pending > limit or self._received - self._consumed > 2 * limit:
            raise ServiceError(
                "too_large",
                f"{pending * MAX_PENDING_S / limit:.1f} s of audio are pending, "
                f"expected at most {MAX_PENDING_S} s",
            )
        return messages.AudioChunk(data=pcm)

    def _command(self, fields: dict[str, Any]) -> messages.LiveCommand:
        kind = fields.pop("type", None)
        if kind == "update":
            return _update(fields)
        if kind == "state" and fields.keys() == {"state"}:
            return messages.Update(state=parse_state(fields["state"]))
        if kind not in ("interrupt", "end") or fields:
            raise ServiceError(
                "bad_request",
                f"message = {str(kind)[:100]!r} with {_names(fields)}, "
                "expected interrupt or end without fields, update with options or state with state",
            )
        if kind == "interrupt":
            self._dropped = self._received
            return messages.Interrupt()
        self._ended = True
        return messages.End()

    async def send(self, events: AsyncIterator[messages.AnyEvent]) -> None:
        """Forward the worker's events to the client until the video is complete.

        Raises `ServiceError` when the session fails, is cancelled or expires.
        """
        started = await first_event(events)
        if not isinstance(started, messages.Started):
            raise TypeError(f"first event = {started.type!r}, expected 'started'")
        self._motion = started.motion
        if self._replay is None:
            await self._ready(started)
        else:
            events = await self._replay.missed(events)
            await self._resumed()
        if not self._motion and (self._replay is None or self._replay.from_start):
            await self._channel.send_media(started.data)
        async for event in events:
            if isinstance(event, messages.JobDone):
                await self._channel.send(
                    {"type": "done", "frames": event.frames, "duration_s": event.duration_s}
                )
                return
            await self._forward(event)
        raise ServiceError("internal_error", "the session has expired")

    async def _ready(self, started: messages.Started) -> None:
        ready = {
            "type": "ready",
            "session_id": self._attached.job_id,
            "seed": started.seed,
            "mime": f'video/mp4; codecs="{started.codecs}"',
            "fps": started.fps,
            "width": started.width,
            "height": started.height,
            "digital_source_type": AI_GENERATED,
        }
        token = {"token": self._token} if self._token else {}
        self.resumable = bool(self._token)
        await self._channel.send({**ready, **token, **(MOTION_READY if self._motion else {})})

    async def _resumed(self) -> None:
        """Tell the client what the service has of its input, for it to send the rest again."""
        await self._channel.send(
            {
                "type": "resumed",
                "session_id": self._attached.job_id,
                "messages": self._attached.commands,
                "audio_bytes": self._attached.position.received,
            }
        )

    async def _forward(self, event: messages.AnyEvent) -> None:
        if isinstance(event, messages.Failed):
            raise ServiceError.published(event.code, event.detail)
        if isinstance(event, messages.JobInterrupted):
            self._consumed = max(self._consumed, event.consumed_bytes)
            self._arrivals.seek(event.consumed_bytes)
            await self._channel.send({"type": "interrupted", "at_s": event.at_s})
        elif isinstance(event, messages.JobFragment):
            self._consumed = max(self._consumed, event.consumed_bytes)
            fields = {
                "type": "fragment",
                "index": event.index,
                "start_s": event.start_s,
                "duration_s": event.duration_s,
                "kind": "speech" if event.speech else "idle",
            }
            if self._motion:
                await self._channel.send(motion_message(fields, event.data))
            else:
                await self._channel.send(fields)
                await self._channel.send_media(event.data, event.pcm)
            self._record_latency(event)
        elif isinstance(event, messages.Cancelled):
            raise ClientGone  # it has ended the session by another request
        else:
            raise ServiceError("internal_error", f"the session ended as {event.type}")

    def _record_latency(self, fragment: messages.JobFragment) -> None:
        if not fragment.speech:  # all audio before it has been played
            self._arrivals.seek(fragment.consumed_bytes)
            return
        arrival_s = self._arrivals.take(fragment.duration_s)
        if arrival_s is not None:
            metrics.mic_to_fragment(time.monotonic() - arrival_s)


class _AudioArrivals:
    """When the audio of a fragment arrived. Positions are bytes since the start."""

    def __init__(self, sample_rate: int) -> None:
        self._byte_rate = 2 * sample_rate
        self._position = 0.0
        self._arrivals: deque[tuple[int, float]] = deque()  # end, arrival of its first byte

    def add(self, end: int, now_s: float) -> None:
        """All audio up to ``end`` has arrived by ``now_s``, in seconds."""
        if self._arrivals and now_s - self._arrivals[-1][1] < _ARRIVAL_RESOLUTION_S:
            self._arrivals[-1] = (end, self._arrivals[-1][1])
        else:
            self._arrivals.append((end, now_s))

    def seek(self, position: int) -> None:
        """Speech continues from ``position``."""
        self._position = position

    def take(self, seconds: float) -> float | None:
        """When the first byte of the next ``seconds`` arrived; ``None`` for padding at the end."""
        while self._arrivals and self._arrivals[0][0] <= self._position:
            self._arrivals.popleft()
        self._position += seconds * self._byte_rate
        return self._arrivals[0][1] if self._arrivals else None


async def _request(
    context: RequestContext, start: LiveStart
) -> tuple[messages.LiveRequest, dict[str, bytes]]:
    if (start.portrait is None) == (start.avatar_id is None):
        raise ServiceError("bad_request", "expected either 'portrait' or 'avatar_id'")
    parts = {}
    if start.avatar_id is not None:
        await require_avatar(context.producer, start.avatar_id)
    if start.portrait is not None:
        try:
            parts["portrait"] = base64.b64decode(start.portrait, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ServiceError("bad_request", f"'portrait' is not base64: {error}") from error
        portrait = parts["portrait"]
        max_bytes = min(MAX_PORTRAIT_BYTES, context.settings.max_portrait_bytes)
        check_portrait(portrait, len(portrait), max_bytes)
    model = await choose_model(context.producer, start.options.model)
    seed = start.options.seed
    request = messages.LiveRequest(
        options=start.options,
        model=model.name,
        seed=secrets.randbelow(2**63) if seed is None else seed,
        sample_rate=start.sample_rate,
        idle=start.idle,
        avatar_id=start.avatar_id,
    )
    return request, parts


def _update(fields: dict[str, Any]) -> messages.Update:
    for name in fields:
        if name not in messages.LIVE_OPTIONS:
            raise ServiceError(
                "invalid_option",
                f"update of {name[:100]!r}, expected {', '.join(messages.LIVE_OPTIONS)}",
            )
    return messages.Update(**parse_options(fields).model_dump(include=set(fields)))


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(fields)[:100] or "no fields"

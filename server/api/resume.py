"""Resuming a live session on a new connection: who may, and what its client has missed."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.api.dependencies import RequestContext, checked_id
from server.api.video import Detached
from server.broker import messages
from server.broker.attachment import Attachment
from server.errors import ServiceError


class Resume(BaseModel):
    """The `resume` message of the WebSocket.

    ``next_index`` is that of the first fragment that the client has not had, ``interrupted`` how
    many messages of that type it has had; without it, those before that fragment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    session_id: str
    token: str = Field(max_length=100)
    next_index: int = Field(ge=0)
    interrupted: int | None = Field(None, ge=0)


def parse_resume(fields: dict[str, Any]) -> Resume:
    """Raises `ServiceError` ``invalid_option``, naming the first wrong field."""
    try:
        return Resume.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])[:100]
        raise ServiceError(
            "invalid_option", f"{name} = {str(fields.get(name))[:100]!r}: {first['msg']}"
        ) from error


async def find_session(context: RequestContext, resume: Resume) -> messages.LiveRequest:
    """The session to resume.

    Raises `ServiceError` ``not_found`` for one that is unknown or has ended, ``forbidden`` for a
    wrong token, ``invalid_option`` for a fragment that was not made yet.
    """
    found = await context.producer.live_request(checked_id(resume.session_id))
    if found is None or not found[0].token:
        raise expired()
    request, made = found
    if not hmac.compare_digest(request.token.encode(), resume.token.encode()):
        raise ServiceError("forbidden", "token is not the one of this session's 'ready'")
    if made is not None and resume.next_index > made:
        raise ServiceError(
            "invalid_option", f"next_index = {resume.next_index}, expected at most {made}"
        )
    return request


def expired() -> ServiceError:
    """The error of a session that cannot be resumed any more, or never could."""
    return ServiceError("not_found", "there is no such session, or it has ended")


class Replay:
    """Leaves out the events that the client of a resumed session has had."""

    def __init__(self, resume: Resume, attached: Attachment) -> None:
        self._resume, self._made = resume, attached.fragments
        self._reached = self._interrupts = 0

    @property
    def from_start(self) -> bool:
        """Whether the client may lack the init segment as well."""
        return self._resume.next_index == 0

    async def missed(
        self, events: AsyncIterator[messages.AnyEvent]
    ) -> AsyncIterator[messages.AnyEvent]:
        """What the client has missed of the ``events`` after `Started`, and all that follows.

        Raises `Detached` where a fragment that it needs is not kept any more.
        """
        first: list[messages.AnyEvent] = []
        while self._made != 0 and not (first and _decides(first[-1])):
            event = await anext(events, None)
            if event is None:
                raise expired()
            first.append(event)
        if first and isinstance(first[-1], messages.JobFragment):
            kept = first[-1].index
            if self._resume.next_index < kept:
                detail = f"next_index = {self._resume.next_index}, but {kept} is the first kept"
                raise Detached(ServiceError("not_found", detail))
        return self._rest(first, events)

    async def _rest(
        self, first: Sequence[messages.AnyEvent], events: AsyncIterator[messages.AnyEvent]
    ) -> AsyncIterator[messages.AnyEvent]:
        for event in first:
            if not self._had(event):
                yield event
        async for event in events:
            if not self._had(event):
                yield event

    def _had(self, event: messages.AnyEvent) -> bool:
        if isinstance(event, messages.JobFragment):
            self._reached = event.index + 1
            return event.index < self._resume.next_index
        if isinstance(event, messages.JobInterrupted):
            self._interrupts += 1
            if self._resume.interrupted is not None:
                return self._interrupts <= self._resume.interrupted
            return self._reached < self._resume.next_index
        return False


def _decides(event: messages.AnyEvent) -> bool:
    """Whether the event tells what is kept."""
    return isinstance(event, messages.JobFragment | messages.Ending)

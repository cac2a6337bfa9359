"""Every way into a service, for hostile tests and `bench/abuse.py`."""

from __future__ import annotations

from bench.doors.base import Address, Answer, Door
from bench.doors.rest import ANIMATE, AVATARS, VERIFY
from bench.doors.stream import StreamDoor
from bench.doors.webrtc import WebRTCDoor

DOORS: dict[str, Door] = {
    door.name: door for door in (ANIMATE, AVATARS, VERIFY, StreamDoor(), WebRTCDoor())
}

__all__ = ["DOORS", "Address", "Answer", "Door"]

"""Speak through a character in Unreal Engine, as the app Live Link Face would drive it.

    python live_link.py portrait.jpg speech.wav --unreal 127.0.0.1:11111

Needs `fada-client` and a running service. Play the sound yourself, beside the character; a live
program pushes its voice instead of a file's.
"""

from __future__ import annotations

import argparse
import socket
import struct
import threading
import time
import uuid
import wave
from collections.abc import Mapping, Sequence

from fada_client import Client, Motion, MotionFrame

FPS = 25
BLOCK_S = 0.1
# The packets' order differs from that of the app's files in these.
SWAPPED = {
    "jawRight": "jawLeft",
    "jawLeft": "jawRight",
    "mouthRight": "mouthLeft",
    "mouthLeft": "mouthRight",
}
DEVICE = f"${uuid.uuid4()}"


def packet(name: str, index: int, values: Sequence[float]) -> bytes:
    """One frame as Live Link Face sends it: version, device, subject, time, 61 numbers."""
    subject = name.encode()
    head = struct.pack("<I", 6) + DEVICE.encode() + struct.pack("!i", len(subject)) + subject
    when = struct.pack("!if2i", index, 0.0, FPS, 1)
    return head + when + struct.pack("!B61f", len(values), *values)


def values(frame: MotionFrame, names: Sequence[str]) -> list[float]:
    """52 actions, then head and eyes by Unreal's axes; yaw and roll are the other way round."""
    actions: Mapping[str, float] = frame.actions
    pose = frame.pose
    shapes = [actions[SWAPPED.get(name, name)] for name in names]
    return [*shapes, -pose["yaw"], pose["pitch"], -pose["roll"], *[0.0] * 6]


def push(stream, speech: wave.Wave_read) -> None:  # type: ignore[no-untyped-def]
    """The file in real time."""
    while block := speech.readframes(round(BLOCK_S * speech.getframerate())):
        stream.push_audio(block)
        time.sleep(BLOCK_S)
    stream.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("portrait")
    parser.add_argument("speech", help="WAV, 16 bits, mono")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--unreal", default="127.0.0.1:11111", help="address of Unreal Engine")
    parser.add_argument("--subject", default="fada", help="name in the Live Link window")
    args = parser.parse_args()
    host, _, port = args.unreal.rpartition(":")
    with (
        Client(args.url) as client,
        wave.open(args.speech) as speech,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unreal,
    ):
        avatar = client.create_avatar(args.portrait)
        rate = speech.getframerate()
        options = {"output": "motion", "idle": True}
        with client.stream(avatar.avatar_id, sample_rate=rate, **options) as stream:
            threading.Thread(target=push, args=(stream, speech), daemon=True).start()
            began_s: float | None = None
            for event in stream:
                if not isinstance(event, Motion):
                    continue
                began_s = time.monotonic() - event.start_s if began_s is None else began_s
                for k, frame in enumerate(event.frames):
                    time.sleep(max(0.0, began_s + frame.t - time.monotonic()))
                    index = round(event.start_s * FPS) + k
                    row = values(frame, stream.ready.actions)
                    unreal.sendto(packet(args.subject, index, row), (host, int(port)))


if __name__ == "__main__":
    main()

"""Motion as a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from fada_client import MotionFrame

from server.motion import FPS, JSON_LINES, LIVE_LINK, pack_row


def motion_file(frames: Iterable[MotionFrame], out: str | Path) -> Iterator[bytes]:
    """The lines of a file called ``out``: a table (``.csv``) or JSON lines."""
    kind = LIVE_LINK if Path(out).suffix.lower() == ".csv" else JSON_LINES
    yield kind.header(FPS).encode()
    for index, frame in enumerate(frames):
        yield kind.frame(index, pack_row(frame.actions, frame.pose), FPS).encode()

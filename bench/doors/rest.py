"""The doors that take a form: `POST /animate`, `POST /avatars`, `POST /verify`."""

from __future__ import annotations

from bench.doors.base import EXAMPLES, FORM, Address, FormDoor, crowd

_PORTRAIT = (EXAMPLES / "presenter.jpg").read_bytes()
_SPEECH = (EXAMPLES / "speech.wav").read_bytes()


def _refused_uploads_that_stall(at: Address, until_s: float) -> None:
    """Bodies that are too large by their header."""
    head = at.request("POST", "/animate", {"Content-Length": "900000000", **FORM})
    crowd(at, until_s, head + bytes(1000))


ANIMATE = FormDoor(
    "animate",
    "/animate",
    media={"portrait": _PORTRAIT, "audio": _SPEECH},
    floods={"refused uploads that stall": _refused_uploads_that_stall},
)
AVATARS = FormDoor("avatars", "/avatars", media={"portrait": _PORTRAIT})
# FFmpeg reads a picture as a video of one frame.
VERIFY = FormDoor("verify", "/verify", media={"video": _PORTRAIT})

"""Reads the marks of an uploaded video in a process of its own, without privileges.

It reads the video from its standard input, a file, and prints the report as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile

from media.errors import MediaError
from media.signing import library
from media.verify import read_marks
from server.errors import ServiceError

log = logging.getLogger("fada.worker")

_ANSWER_S = 30.0
_CPU_S = 20
_MEMORY_BYTES = 2 << 30
_ANSWER_BYTES = 1 << 20
_NOBODY = 65534
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def inspect(video: bytes) -> dict[str, object]:
    """The fields of `media.verify.MarksReport`; blocks for about a second.

    Raises `ServiceError` ``unsupported_media`` for what is no video.
    """
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    with tempfile.TemporaryFile() as file:
        file.write(video)
        file.seek(0)
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__],
                stdin=file,
                capture_output=True,
                env=environment,
                timeout=_ANSWER_S,
            )
            answer = json.loads(done.stdout[:_ANSWER_BYTES])
        except (subprocess.TimeoutExpired, ValueError) as error:
            log.warning("a video could not be inspected: %s", error)
            raise ServiceError("unsupported_media", "the video could not be read") from error
    if "error" in answer:
        raise ServiceError("unsupported_media", str(answer["error"]))
    return dict(answer)


def main() -> None:
    with contextlib.suppress(ModuleNotFoundError):
        library()  # an unprivileged user may not be able to read it
    _give_up_privileges()
    with open(0, "rb", closefd=False) as file:  # a descriptor
        try:
            answer = dataclasses.asdict(read_marks(file))
        except MediaError as error:
            answer = {"error": error.detail}
    print(json.dumps(answer))


def _give_up_privileges() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    for what, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # not every system keeps every limit
            resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    main()

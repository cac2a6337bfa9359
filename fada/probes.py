"""What the installed packages can do here, each asked in a process of its own.

Native code may crash on a machine that it was not built for; `ask` then reports the crash. In the
child, ``python -m fada.probes NAME`` prints the answer as JSON.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

_TIMEOUT_S = 300.0  # networks are compiled on a slow machine
Answer = dict[str, Any]


def ask(name: str) -> Answer:
    """The answer of the probe ``name``; ``{"problem": why}`` where it failed. Never raises."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fada.probes", name],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines() or ["no message"]
        return {"problem": f"it ended with status {done.returncode}: {said[-1]}"}


def torch_() -> Answer:
    import torch

    cuda = torch.version.cuda
    found: Answer = {"version": torch.__version__, "cuda": cuda, "gpus": []}
    if cuda is None:
        return found
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # says why there is none
        count = torch.cuda.device_count()
        found["gpus"] = [torch.cuda.get_device_name(place) for place in range(count)]
    except (RuntimeError, AssertionError) as error:
        found["why_no_gpu"] = str(error).splitlines()[0]
    return found


def openvino() -> Answer:
    from engines.openvino import precisions

    return {"version": metadata.version("openvino"), "precisions": list(precisions())}


def video() -> Answer:
    """For each encoder: None where it works here, or why not."""
    import av
    import av.logging

    from media.encoders import ENCODERS, AACEncoder, check_encoder

    AACEncoder()
    av.logging.set_level(av.logging.ERROR)
    encoders: dict[str, str | None] = {}
    for name in ENCODERS:
        with av.logging.Capture() as said:
            try:
                check_encoder(name)
                encoders[name] = None
            except (ValueError, av.FFmpegError) as error:
                encoders[name] = said[0][2].strip() if said else str(error)
    return {"version": av.__version__, "ffmpeg": av.ffmpeg_version_info, "encoders": encoders}


def engines() -> Answer:
    """Raises ``OSError`` where no engine can be stored."""
    from engines import artifacts

    folder = artifacts.default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return {"path": str(folder), "stored": len(list(artifacts.stored(folder)))}


def students() -> Answer:
    """For each student that a worker would load: its engine, as the worker chooses it."""
    from engines import provision
    from engines.select import StudentNet, student_engine
    from engines.student_engines import StudentEngines
    from model import models
    from server.settings import Settings
    from server.worker.pipelines import model_choice

    logged: list[list[logging.LogRecord]] = []

    def make(student: StudentNet) -> Any:
        with _records("engines.select") as records:
            forward = student_engine(student)
        logged.append(records)
        return forward

    engines = StudentEngines(make)
    choice = model_choice(Settings())  # type: ignore[call-arg]  # all have defaults
    loaded = models.load(choice, motion_engine=engines.motion, video_engine=engines.video)
    unbuildable = provision.unbuildable()
    found: Answer = {}
    for name, (student, forward), records in zip(loaded, engines.take(), logged, strict=True):
        assert student is not None
        build = None if unbuildable else provision.needed(name, student, forward)
        failure = build and build.failure
        found[name] = {
            **_decision(records),
            "builds": build and build.title,
            "build_failed": failure and failure.reason,
        }
    return found


@contextmanager
def _records(logger: str) -> Iterator[list[logging.LogRecord]]:
    """What ``logger`` logs in the block."""
    kept: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return True

    log = logging.getLogger(logger)
    log.setLevel(logging.INFO)
    log.addFilter(keep)
    try:
        yield kept
    finally:
        log.removeFilter(keep)


def _decision(records: list[logging.LogRecord]) -> Answer:
    """The last line is about the engine that was taken, those before it about refused ones."""
    *refused, taken = records
    engine, reason = taken.args if isinstance(taken.args, tuple) and taken.args else (None, None)
    return {
        "engine": engine or "plain torch",
        "reason": reason or taken.getMessage(),
        "refused": [record.getMessage() for record in refused],
    }


PROBES: dict[str, Callable[[], Answer]] = {
    "torch": torch_,
    "openvino": openvino,
    "video": video,
    "engines": engines,
    "students": students,
}


def main(name: str) -> None:
    try:
        answer = PROBES[name]()
    except Exception as error:  # whatever a package raises on a strange machine
        answer = {"problem": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])

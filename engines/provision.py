"""Builds the engines that a machine's students need, once, however many workers ask for it.

A build runs in a process of its own, `fada engines build`, so that a crash or a lack of memory ends
nothing else. Workers watch the folder: the engine appears there, or a note of why it failed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from engines import artifacts
from engines.artifacts import Manifest
from engines.base import ProgramNet, backend_named, driver_version
from engines.build import BuildSpec, build, requested
from engines.example_inputs import ExampleModel
from engines.export import Tensors
from engines.select import StudentNet
from engines.student_engines import StudentEngines
from model import models
from model.diffusion.cached_context import CachedContext, SplitNet
from model.diffusion.denoiser import Forward
from model.motion.rollout import MotionOnly

BACKEND, PRECISION = "tensorrt", "fp16"
MAX_ATTEMPTS = 3  # of a build that is killed: the next may find more memory
_LOCK, _FAILURES = ".lock", "failures"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why there is no engine yet: after so many attempts; ``final``: another would fail as well."""

    attempts: int
    reason: str
    final: bool

    @property
    def forbids(self) -> bool:
        """Whether not to try again."""
        return self.final or self.attempts >= MAX_ATTEMPTS


class EngineBuild:
    """The engine that the student called ``name`` should have in the folder ``root``."""

    def __init__(self, name: str, student: StudentNet, root: Path) -> None:
        self.name, self.student, self.root = name, student, root
        self.spec = BuildSpec(BACKEND, PRECISION, student.batch)

    @cached_property
    def request(self) -> Manifest:
        """What the engine's manifest will have, but for files and parity."""
        return requested(self._model, self.spec)

    @property
    def _model(self) -> ExampleModel:
        return ExampleModel(self.name, self.student.net, self.student.inputs)

    @property
    def title(self) -> str:
        return f"{self.request.title} of {self.name}"

    @property
    def place(self) -> Path:
        """The engine's folder, whether it is there or not."""
        return self.root / artifacts.key(self.request)

    def stored(self) -> bool:
        """Whether the engine is there and undamaged."""
        try:
            manifest = artifacts.read(self.place / artifacts.MANIFEST)
        except (ValueError, OSError):
            return False
        return artifacts.verify(self.place, manifest) is None

    @cached_property
    def _record(self) -> Path:
        """Where failures of the same inputs are noted: also the driver and the code that builds."""
        digest = hashlib.sha256(driver_version().encode())
        for file in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(file.read_bytes())
        return self.root / _FAILURES / f"{self.place.name}-{digest.hexdigest()[:12]}.json"

    @property
    def failure(self) -> Failure | None:
        try:
            return Failure(**json.loads(self._record.read_text()))
        except (OSError, ValueError, TypeError):  # none, or half of one
            return None

    def fail(self, reason: str, *, final: bool) -> None:
        """Note an attempt that failed."""
        attempts = self.failure.attempts if self.failure else 0
        self.note(Failure(attempts + 1, reason, final))

    def note(self, failure: Failure | None) -> None:
        """Replace the note; None: there was no failure."""
        if failure is None:
            self._record.unlink(missing_ok=True)
            return
        self._record.parent.mkdir(parents=True, exist_ok=True)
        partial = self._record.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(failure)) + "\n")
        partial.replace(self._record)

    def run(self) -> None:
        """Build the engine, unless it is there. Raises what the backend raises, and notes it."""
        if self.stored():
            return
        # Noted before it begins: a build may take its process, or the machine, down with it.
        before = self.failure
        self.fail("the build was killed, perhaps for lack of memory", final=False)
        attempts = self.failure.attempts if self.failure else 1
        _log.info("building %s", self.title)
        try:
            _, manifest = build(self._model, self.spec, self.root)
        except (MemoryError, torch.OutOfMemoryError) as error:
            self.note(Failure(attempts, f"out of memory: {error}", final=False))
            raise
        except KeyboardInterrupt:
            self.note(before)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.note(Failure(attempts, reason, final=True))
            raise
        self.note(None)
        _log.info(
            "built %s, off by at most %.1e", self.title, max(manifest.parity.values(), default=0.0)
        )


def unbuildable() -> str | None:
    """Why no engine for a GPU can be built here; None: it can."""
    return backend_named(BACKEND).unbuildable()


def needed(name: str, student: StudentNet, forward: Forward) -> EngineBuild | None:
    """The engine that the student lacks; None where it runs on a built one, or one was refused.

    A stored engine that was not chosen at the start would be refused again; a damaged one is built
    anew.
    """
    if runs_on_built(forward):
        return None
    wanted = default_build(name, student)
    return None if wanted.stored() else wanted


def default_build(name: str, student: StudentNet) -> EngineBuild:
    return EngineBuild(name, student, artifacts.default_folder())


def runs_on_built(forward: Forward) -> bool:
    return isinstance(forward, CachedContext) and isinstance(forward.net, ProgramNet)


@contextmanager
def build_lock(root: Path, *, wait: bool = True) -> Iterator[int | None]:
    """Held by the one process that builds in ``root``, in every container on this machine.

    None where another holds it and we do not ``wait``, else a file descriptor: a child process that
    inherits it holds the lock too, and the kernel frees it when the last holder ends.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def build_missing(choice: models.Choice, root: Path, *, locked: bool = False) -> list[EngineBuild]:
    """Build what the students of ``choice`` lack in ``root``, one process at a time.

    ``locked``: this process has inherited the `build_lock`. Raises ``ValueError`` where nothing can
    be built here, and what the backend raises.
    """
    if problem := unbuildable():
        raise ValueError(f"{BACKEND} engines cannot be built here: {problem}")
    engines = StudentEngines(lambda student: CachedContext(cast(SplitNet[Tensors], student.net)))
    students = models.load(
        choice, motion_engine=engines.motion, video_engine=engines.video, space=MotionOnly()
    )
    builds = [
        EngineBuild(name, student, root)
        for name, (student, _) in zip(students, engines.take(), strict=True)
        if student is not None
    ]
    with nullcontext() if locked else build_lock(root):
        artifacts.clean(root)
        for one in builds:
            one.run()
    return builds

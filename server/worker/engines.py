"""A worker's engines: built while it serves, then switched to between two windows."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from server import process
from server.errors import SetupError
from server.settings import Settings
from server.worker.calibration import Calibration, example_reference, window_cost
from server.worker.resources import WorkerResources

if TYPE_CHECKING:
    from engines.provision import EngineBuild
    from engines.select import StudentNet
    from engines.student_engines import StudentEngines
    from model.diffusion.cached_context import CachedContext

log = logging.getLogger("fada.worker")

T = TypeVar("T")
_POLL_S = 0.5
_TIMEOUT_S = 3600.0  # of one build: a motion student's takes a minute, a video student's many
_NICE = 10
_COMMAND = (sys.executable, "-m", "fada.cli", "engines", "build")


class WorkerEngines:
    """Builds what the students lack. ``detail`` says for the heartbeat what is under way.

    ``made``: what `models.load` made of the students, in their order; None: by a loader that
    has engines of its own.
    """

    def __init__(
        self,
        settings: Settings,
        resources: WorkerResources,
        calibration: Calibration | None,
        *,
        made: StudentEngines | None,
        command: tuple[str, ...] = _COMMAND,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._settings, self._resources, self._calibration = settings, resources, calibration
        self._command, self._timeout_s = command, timeout_s
        students = {} if made is None else dict(zip(resources.models, made.take(), strict=True))
        self._forwards = {name: forward for name, (_, forward) in students.items()}
        # Not kept for longer than needed: a video student's network is gigabytes of GPU memory.
        self._students = {name: one for name, (one, _) in students.items() if one is not None}
        self.detail = ""
        for name in students:
            self._follow_batch(name)

    @property
    def only(self) -> bool:
        """Whether the worker may serve on built engines alone."""
        return self._settings.engines_build == "only"

    async def run(self) -> None:
        """Build and switch to what is missing. Raises `SetupError` for ``only`` where it fails."""
        if not self._students or self._settings.engines_build == "never":
            self._students.clear()
            return
        from engines import provision
        from engines.base import NO_GPU

        problem = provision.unbuildable()
        if problem not in (None, NO_GPU):
            log.warning("building no engines for the GPU: %s", problem)
        for name in list(self._students):
            student, forward = self._students.pop(name), self._forwards[name]
            if problem is None:
                await self._provide(name, student, forward)
            self.detail = ""
            if self.only and not provision.runs_on_built(forward):
                raise SetupError(
                    f"FADA_ENGINES_BUILD=only, and {name} has no built engine: "
                    f"{problem or 'the log says why'}"
                )

    async def _provide(self, name: str, student: StudentNet, forward: CachedContext[Any]) -> None:
        from engines import provision

        try:
            # To hash the weights of a video student takes seconds.
            wanted = await self._in_background(provision.needed, name, student, forward)
            if wanted is not None and await self._built(wanted):
                await self._switch(wanted, forward)
        except Exception:  # such as a folder that cannot be written; the old engine serves on
            log.exception("no engine was built for %s", name)

    async def _built(self, wanted: EngineBuild) -> bool:
        """Whether the engine is stored, after building it or waiting until another has."""
        from engines import provision

        while True:
            with provision.build_lock(wanted.root, wait=False) as lock:
                before = wanted.failure
                if lock is not None:
                    if await self._in_background(wanted.stored):
                        return True
                    if before is not None and before.forbids:
                        log.warning("not building %s: %s", wanted.title, before.reason)
                        return False
                    child = self._spawn(wanted.name, lock)  # which holds the lock from here on
            if lock is None:
                self.detail = f"waiting for another worker to build {wanted.title}"
                await asyncio.sleep(_POLL_S)
                continue
            try:
                status = await self._wait(child, wanted.title)
            except TimeoutError as error:
                wanted.fail(str(error), final=True)
            except asyncio.CancelledError:  # the worker stops, which is no fault of the build's
                wanted.note(before)
                raise
            else:
                if status and wanted.failure == before:  # it ended before it could note why
                    wanted.fail(f"the build ended with status {status}", final=False)

    def _spawn(self, name: str, lock: int) -> subprocess.Popen[bytes]:
        """A process that builds, and ends with this one."""
        models = {} if self._settings.weights is not None else {"FADA_MODELS": name}
        child = process.spawn([*self._command, "--locked"], models, pass_fds=[lock])
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
        return child

    async def _wait(self, child: subprocess.Popen[bytes], title: str) -> int:
        """The build's exit status. Raises ``TimeoutError`` for one that takes too long."""
        log.info("building %s; sessions are served meanwhile", title)
        began_s = time.monotonic()
        try:
            while child.poll() is None:
                took_s = time.monotonic() - began_s
                if took_s > self._timeout_s:
                    raise TimeoutError(f"it took longer than {self._timeout_s:g} s")
                self.detail = f"building {title} for {took_s:.0f} s"
                await asyncio.sleep(_POLL_S)
        finally:
            child.kill()
            await asyncio.to_thread(child.wait)  # a GPU's memory takes a while to free
        return child.returncode

    async def _switch(self, wanted: EngineBuild, forward: CachedContext[Any]) -> None:
        """Compare the engine, run on it from the next window on, and measure what it costs."""
        from engines.select import stored_engine

        loop, resources = asyncio.get_running_loop(), self._resources
        self.detail = f"comparing {wanted.title}"
        engine = await self._in_background(stored_engine, wanted.student, wanted.place)
        if engine is None:  # logged with its reason
            return
        await loop.run_in_executor(resources.network, forward.replace, engine.net)
        self._follow_batch(wanted.name)
        log.info("%s runs on %s", wanted.name, wanted.request.title)
        if self._calibration is None:
            return
        pipeline = resources.batcher(wanted.name).pipeline
        reference = await loop.run_in_executor(resources.portraits, example_reference, pipeline)
        measure = partial(window_cost, encoding=resources.marks.encoding)
        cost = await self._in_background(measure, pipeline, reference, resources.network)
        self._calibration.update(wanted.name, cost, resources.capacity)

    async def _in_background(self, call: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resources.background, call, *arguments)

    def _follow_batch(self, name: str) -> None:
        """Batches, and sessions where no setting limits them, are as many as the engine takes."""
        net = self._forwards[name].net
        most = getattr(net, "most", None)  # only a built engine has one
        if most is None:
            return
        self._resources.batcher(name).max_batch = most
        if self._settings.sessions_per_worker is None:
            capacity = self._resources.capacity
            capacity.max_sessions = max(capacity.max_sessions, most)

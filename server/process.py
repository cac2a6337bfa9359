"""Child processes that do not outlive their parent.

On Linux the kernel kills a child when its parent dies, however it dies; elsewhere a parent stops
its children only if it exits normally.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    inherit: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start ``command`` (absolute program first), bound to this process, in a session of its own.

    ``environment`` extends this process's, or replaces it without ``inherit``; ``pass_fds`` stay
    open in the child. With its own session, a Ctrl-C on the terminal reaches only the parent,
    which then stops its children in order. Call it on the main thread: the kernel binds the child
    to the calling thread.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "server.process", str(os.getpid()), *command],
        env={**(os.environ if inherit else {}), **environment},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=pass_fds,
    )


def usable_cores() -> int:
    """The number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """The GPUs for workers, named as in ``CUDA_VISIBLE_DEVICES``; none where TensorRT is missing.

    Asks neither torch nor the driver, so that the API's process stays free of both.
    """
    if not any(find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name for name in map(str.strip, named.split(",")) if name not in ("", "-1"))
    return tuple(str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*")))


def stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Send SIGTERM, then SIGKILL after ``timeout_s`` seconds; return when it has exited."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _become(parent: int, command: Sequence[str]) -> None:
    """Bind this process to ``parent`` and exec ``command``, which keeps the process id."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before prctl
        sys.exit(1)
    os.execv(command[0], list(command))


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])

"""The folder that API processes and workers share: large uploads, and large videos that are kept.

A file belongs to a job and is named after it. Files of jobs for which nothing is reserved any more
(`server.broker.reservations`) are swept. Each Redis has a subfolder of its own, so that services
may be given the same folder. Every process holds a shared lock on its subfolder; one that nobody
holds was left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import ServiceError, SetupError

log = logging.getLogger("fada.broker")

PRIVATE = "private-"  # begins the name of a service whose Redis ends with it
_LOCK, _ID = "lock", "id"
_OWN = (_LOCK, _ID)
_FREE_BYTES = 1 << 30  # left for others on the disk
_LEFT_BEHIND_S = 86_400.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class SharedFolder:
    """Files in ``path``, which is named after the ``service``.

    ``token`` is the same for all processes that see the same files.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.service, self.token = path, path.name, token

    async def write(self, job_id: str, name: str, data: bytes, *, at: int) -> None:
        """Write to a file from byte ``at`` on. Raises `ServiceError` ``busy`` for a full disk."""
        try:
            await asyncio.to_thread(self._write, job_id, name, data, at)
        except OSError as error:
            log.error("job %s: cannot write to FADA_DATA: %s", job_id, error)
            if error.errno in _FULL:
                raise ServiceError("busy", "the service's disk is full") from error
            raise ServiceError("internal_error", "the service cannot write to its disk") from error

    async def read(self, job_id: str, name: str, at: int = 0, size: int = -1) -> bytes | None:
        """``size`` bytes of a file from ``at`` on, or all the rest; ``None`` if it is not there."""
        return await asyncio.to_thread(self._read, job_id, name, at, size)

    async def delete(self, job_id: str, names: Collection[str] | None = None) -> None:
        """Delete these files of a job, or all."""
        await asyncio.to_thread(self._delete, job_id, names)

    async def room(self, most: int) -> int:
        """How many bytes the files of all jobs may take: ``most``, or less on a full disk."""
        return min(most, await asyncio.to_thread(self._room))

    def jobs(self) -> set[str]:
        """The jobs that have files."""
        names = (path.name for path in self.path.iterdir())
        return {name.partition(".")[0] for name in names if name not in _OWN}

    def touch(self) -> None:
        """Show that the folder is in use."""
        os.utime(self.path / _LOCK)

    def _write(self, job_id: str, name: str, data: bytes, at: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._file(job_id, name), flags, 0o600)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(descriptor, view, at)
                at, view = at + written, view[written:]
        finally:
            os.close(descriptor)

    def _read(self, job_id: str, name: str, at: int, size: int) -> bytes | None:
        try:
            with self._file(job_id, name).open("rb") as file:
                file.seek(at)
                return file.read(size)
        except FileNotFoundError:
            return None

    def _delete(self, job_id: str, names: Collection[str] | None) -> None:
        if names is None:
            names = [path.name.removeprefix(f"{job_id}.") for path in self.path.glob(f"{job_id}.*")]
        for name in names:
            self._file(job_id, name).unlink(missing_ok=True)

    def _room(self) -> int:
        written = 0
        for entry in os.scandir(self.path):
            with contextlib.suppress(FileNotFoundError):
                written += entry.stat().st_size
        return max(0, written + shutil.disk_usage(self.path).free - _FREE_BYTES)

    def _file(self, job_id: str, name: str) -> Path:
        return self.path / f"{job_id}.{name}"


@contextmanager
def shared_folder(root: Path, service: str) -> Iterator[SharedFolder]:
    """The subfolder of ``root`` for the Redis called ``service``, in use until the block ends.

    Deletes what services left behind that are gone. Raises `SetupError` for a folder that cannot
    be used.
    """
    path = root / service
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(path)
    except OSError as error:
        raise SetupError(f"FADA_DATA: cannot use {root}: {error.strerror}") from error
    try:
        _remove_left_behind(root)
        yield SharedFolder(path, _token(path))
    finally:
        os.close(lock)
        if service.startswith(PRIVATE):
            _remove_unlocked(path)


def _locked(path: Path) -> int:
    """A shared lock on the folder, which is made; held until the descriptor is closed."""
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # removed since
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (path / _LOCK).stat()):
                return lock
        os.close(lock)


def _token(path: Path) -> str:
    """The folder's own, whoever comes first."""
    draft = path / f"{_ID}.{secrets.token_hex(8)}"
    draft.write_text(secrets.token_hex(12))
    with contextlib.suppress(FileExistsError):
        os.link(draft, path / _ID)
    draft.unlink()
    return (path / _ID).read_text()


def _remove_left_behind(root: Path) -> None:
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            age_s = time.time() - (path / _LOCK).stat().st_mtime
            if path.name.startswith(PRIVATE) or age_s > _LEFT_BEHIND_S:
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        finally:
            os.close(lock)

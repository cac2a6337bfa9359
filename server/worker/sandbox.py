"""Decodes untrusted pictures and sound in isolated processes.

Each upload gets a process of its own (`server.worker.decoder`), without network, files or
privileges and with bounded memory and time. If that process ends before its answer does, only its
upload is refused.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from media.decode import MODEL_RATE, AudioBlock, DecodedSpeech
from model.portrait.image import MAX_KEPT_PIXELS, LoadedPicture
from server import process
from server.errors import KINDS, ServiceError
from server.worker import wire

log = logging.getLogger("fada.worker")

# Wall time of an answer. Processor time is bounded far lower, but a busy machine takes longer.
_ANSWER_S = 60.0
_SMALL_BYTES = 1 << 16
_BLOCK_BYTES = 16 << 20  # a container's longest frame, resampled
_WARNINGS, _WARNING_LETTERS = 4, 200
_PROGRAM = (sys.executable, "-m", "server.worker.decoder")
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class Sandbox:
    """Starts ``program``, which keeps decoders ready: each takes one descriptor that is sent.

    Thread-safe. `close` ends all decoders.
    """

    def __init__(self, program: Sequence[str] = _PROGRAM) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._template, self._control = self._started()

    @property
    def process_id(self) -> int:
        """Of the template."""
        return self._template.pid

    def picture(self, blob: bytes) -> LoadedPicture:
        """See `load_upload`. Raises `ServiceError` ``unsupported_media``."""
        with _shared_memory(3 * MAX_KEPT_PIXELS) as memory:
            with self._decoder({"kind": "picture"}, blob, memory) as sock:
                answer = _answer(sock, wire.PICTURE, 16, what="picture")
            try:
                height, width, full_height, full_width = struct.unpack("<4I", answer)
                # Not mapped: if the decoder truncates the file, reading a map of it kills us.
                data = os.pread(memory, min(3 * height * width, 3 * MAX_KEPT_PIXELS), 0)
                pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
                return LoadedPicture(pixels, full_width, full_height)
            except (struct.error, ValueError) as error:
                _refuse("picture", str(error))

    def speech(self, blob: bytes, output_rate: int, max_s: float) -> DecodedSpeech:
        """See `decode_audio`, whose errors this and the blocks raise.

        Blocks are decoded on demand; the decoder lives until the last, or until they are
        closed.
        """
        request = {"kind": "speech", "output_rate": output_rate, "max_s": max_s}
        sock = self._decoder(request, blob)
        try:
            answer = _answer(sock, wire.SPEECH, _SMALL_BYTES, what="sound")
            (duration_s,) = struct.unpack_from("<d", answer)
        except BaseException as error:
            sock.close()
            if isinstance(error, struct.error):
                _refuse("sound", str(error))
            raise
        most = math.ceil((max_s + 1.0) * (output_rate + MODEL_RATE))
        return DecodedSpeech(
            duration_s if math.isfinite(duration_s) else None,
            _Blocks(sock, most),
            _warnings(answer[8:]),
        )

    def close(self) -> None:
        self._control.close()
        process.stop(self._template, timeout_s=1.0)

    def _started(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*self._program, str(theirs.fileno())]
            kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
            kept["OPENBLAS_NUM_THREADS"] = kept["OMP_NUM_THREADS"] = "1"  # forks have one thread
            template = process.spawn(command, kept, inherit=False, pass_fds=[theirs.fileno()])
        return template, ours

    def _decoder(self, request: dict[str, Any], blob: bytes, *shared: int) -> socket.socket:
        """The worker's end of a decoder that has been given its upload, and ``shared`` memory."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_ANSWER_S)
        try:
            with theirs:
                self._hand_over(theirs.fileno(), *shared)
            wire.send_json(ours, wire.REQUEST, request)
            wire.send(ours, wire.BLOB, blob)
        except OSError:
            pass  # it has ended, and so will the answer
        return ours

    def _hand_over(self, *descriptors: int) -> None:
        with self._lock:
            try:
                if self._template.poll() is not None:  # its decoders have gone with it
                    raise ConnectionResetError
                socket.send_fds(self._control, [b"f"], descriptors)
            except OSError:
                log.warning("the decoders' template ended with %s", self._template.poll())
                self._control.close()
                self._template, self._control = self._started()
                socket.send_fds(self._control, [b"f"], descriptors)


@contextmanager
def _shared_memory(size: int) -> Iterator[int]:
    """A descriptor of ``size`` bytes that take no memory until they are written."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("picture")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


class _Blocks(Iterator[AudioBlock]):
    """A speech as its decoder sends it; `close` ends the decoder."""

    def __init__(self, sock: socket.socket, most: int) -> None:
        """``most``: samples at both rates together, whatever the decoder claims."""
        self._sock, self._left = sock, most

    def __next__(self) -> AudioBlock:
        try:
            answer = _answer(self._sock, wire.BLOCK, _BLOCK_BYTES, what="sound")
            if not answer:
                raise StopIteration
            return self._block(answer)
        except BaseException:  # StopIteration included
            self.close()
            raise

    def _block(self, answer: bytearray) -> AudioBlock:
        try:
            (count,) = struct.unpack_from("<I", answer)
            samples = np.frombuffer(answer, np.float32, offset=4)
        except (struct.error, ValueError) as error:
            _refuse("sound", str(error))
        self._left -= len(samples)
        if self._left < 0 or count > len(samples):
            _refuse("sound", f"{count} of {len(samples)} samples, {-self._left} too many")
        return AudioBlock(samples[:count], samples[count:])

    def close(self) -> None:
        self._sock.close()

    __del__ = close  # a thread's result may come after its job was cancelled


def _warnings(text: bytearray) -> tuple[str, ...]:
    """At most a few short lines, which may become a header: whatever the decoder sent."""
    lines = text.decode("ascii", "replace").splitlines()[:_WARNINGS]
    return tuple(re.sub("[^ -~]", "?", line)[:_WARNING_LETTERS] for line in lines if line)


def _answer(sock: socket.socket, expected: bytes, most: int, *, what: str) -> bytearray:
    """The body of the next message; empty at the end. Raises `ServiceError`."""
    try:
        kind, body = wire.receive(sock, max(most, _SMALL_BYTES))
        if kind == wire.ERROR:
            error = json.loads(body)
            code, detail = error["code"], error["detail"]
    except TimeoutError:
        _refuse(what, f"no answer within {_ANSWER_S:g} s")
    except (OSError, wire.Closed):
        _refuse(what, "it ended the process that decoded it")
    except (ValueError, KeyError, TypeError) as error:
        _refuse(what, str(error))
    if kind == wire.ERROR:
        if code not in KINDS or code == "internal_error":
            log.error("decoding a %s failed: %s", what, detail)
            raise ServiceError("internal_error", f"decoding the {what} failed")
        raise ServiceError(code, detail)
    if kind not in (expected, wire.END):
        _refuse(what, f"message {kind!r}")
    return body


def _refuse(what: str, why: str) -> NoReturn:
    log.warning("a %s could not be decoded: %s", what, why)
    raise ServiceError("unsupported_media", f"the {what} could not be decoded")

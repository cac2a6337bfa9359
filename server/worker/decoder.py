"""Inside the sandbox: a template process that keeps decoders forked, one for each upload.

The template has the libraries loaded and never reads an upload itself. A decoder drops its
privileges, waits, serves one upload over its socket and ends, so no file can affect another.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import io
import json
import math
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
import wave
from pathlib import Path
from typing import Any

import av.subtitles.stream  # noqa: F401  # loaded when a container is opened, or now
from PIL import Image

from media.decode import MODEL_RATE, decode_audio
from media.errors import MediaError
from model.portrait.image import MAX_KEPT_PIXELS, PictureError, load_picture, load_upload
from server.worker import wire

# Beyond what the template maps. 50 megapixels in 16 bits are the most that a picture needs.
_PICTURE_BYTES, _SPEECH_BYTES = 1 << 30, 192 << 20
# Processor time until the first answer, and from each answer to the next.
_STEP_CPU_S = 20
_MAX_UPLOAD_BYTES = 1 << 30  # the service allows far less
_TRACE_BYTES = 4096
_NICE = 5  # live sessions come first
_NOBODY = 65534
_PID = struct.Struct("<i")
_CLOSED = 0  # instead of a process: the worker has gone
_WAITING = 2  # decoders, for a portrait and its speech
_LOOK_S = 1.0
_QUIET_S = 0.5
_SOCKET, _PIXELS = 3, 4  # the only descriptors beside the three standard ones
_HIGH = 64
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38  # linux/prctl.h


def main(control: socket.socket) -> None:
    """Keep decoders forked and waiting on ``control``, each for one descriptor, until it closes."""
    Image.init()  # a decoder can open no file, and so load no plugin
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    samples = _samples()
    mapped = _mapped_bytes()
    gc.collect()
    gc.freeze()  # a collection would touch every object, and so copy every shared page
    events, announce = os.pipe()
    waiting: set[int] = set()
    while True:
        while len(waiting) < _WAITING:
            child = os.fork()
            if child == 0:
                try:
                    _decoder(control, announce, samples, mapped=mapped)
                finally:
                    os._exit(0)
            waiting.add(child)
        if select.select([events], [], [], _LOOK_S)[0]:
            (child,) = _PID.unpack(os.read(events, _PID.size))
            if child == _CLOSED:
                return
            waiting.discard(child)
        while child := _reaped():
            waiting.discard(child)


def _decoder(
    control: socket.socket, announce: int, samples: tuple[bytes, bytes], *, mapped: int
) -> None:
    """Wait for one upload, and decode it."""
    _give_up_privileges()
    if not select.select([control], [], [], _QUIET_S)[0]:
        _warm_up(
            *samples
        )  # not at once: the upload that took the decoder before needs the processor now
    _, descriptors, _, _ = socket.recv_fds(control, 1, 2)
    os.write(announce, _PID.pack(os.getpid() if descriptors else _CLOSED))
    if descriptors:
        _serve(*_alone_with(descriptors), mapped)


def _warm_up(picture: bytes, speech: bytes) -> None:
    """Touch what decoding needs before an upload waits for it.

    The first picture teaches the allocator to keep such blocks, the second leaves them mapped: to
    map them anew takes as long as to decode.
    """
    for _ in range(2):
        load_picture(picture)
    for _ in decode_audio(speech, MODEL_RATE, 60.0).blocks:
        pass


def _reaped() -> int:
    """A decoder that has ended; 0 when there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def _samples() -> tuple[bytes, bytes]:
    """A picture of a usual size and a short sound."""
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1024, 1024), (90, 140, 90)).save(picture, "JPEG")
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes(bytes(9600))
    return picture.getvalue(), sound.getvalue()


def _mapped_bytes() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _give_up_privileges() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    _ask_kernel(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user would clear it
    _ask_kernel(_PR_SET_NO_NEW_PRIVS, 1)
    _ask_kernel(_PR_SET_DUMPABLE, 0)
    os.nice(_NICE)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)


def _alone_with(descriptors: list[int]) -> tuple[socket.socket, mmap.mmap | None]:
    """Close every other descriptor, and let no file, socket or pipe be had from now on.

    The first is the socket; the second, if there is one, the memory for a picture's pixels.
    """
    kept = [fcntl.fcntl(one, fcntl.F_DUPFD, _HIGH) for one in descriptors]  # out of the way
    for place, one in enumerate(kept, _SOCKET):
        os.dup2(one, place)
    os.closerange(_SOCKET + len(kept), 1 << 16)
    pixels = mmap.mmap(_PIXELS, 3 * MAX_KEPT_PIXELS) if len(kept) > 1 else None
    _limit(resource.RLIMIT_NOFILE, _SOCKET + 1)
    return socket.socket(fileno=_SOCKET), pixels


def _ask_kernel(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _limit(what: int, most: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # not every system keeps every limit
        resource.setrlimit(what, (most, most))


def _limit_step() -> None:
    """Processor time from here on; SIGXCPU ends what takes longer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + _STEP_CPU_S
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _serve(sock: socket.socket, shared: mmap.mmap | None, mapped: int) -> None:
    try:
        _, text = wire.receive(sock, _TRACE_BYTES)
        _, blob = wire.receive(sock, _MAX_UPLOAD_BYTES)
        request: dict[str, Any] = json.loads(text)
        if mapped:
            more = _SPEECH_BYTES if shared is None else _PICTURE_BYTES + len(shared)
            _limit(resource.RLIMIT_AS, mapped + len(blob) + more)
        _limit_step()
        if shared is not None:
            loaded = load_upload(bytes(blob))
            height, width, _ = loaded.pixels.shape
            shared[: loaded.pixels.nbytes] = loaded.pixels.data.cast("B")
            sizes = struct.pack("<4I", height, width, loaded.height, loaded.width)
            wire.send(sock, wire.PICTURE, sizes)
        else:
            _serve_speech(sock, bytes(blob), request)
    except PictureError as error:
        _refuse(sock, "unsupported_media", str(error))
    except MediaError as error:
        _refuse(sock, error.code, error.detail)
    except MemoryError:
        _refuse(sock, "unsupported_media", "decoding it takes more memory than is allowed")
    except (OSError, wire.Closed):
        return  # the worker has dropped this upload
    except Exception:
        _refuse(sock, "internal_error", traceback.format_exc()[-_TRACE_BYTES:])


def _serve_speech(sock: socket.socket, blob: bytes, request: dict[str, Any]) -> None:
    speech = decode_audio(blob, request["output_rate"], request["max_s"])
    duration_s = math.nan if speech.duration_s is None else speech.duration_s
    warnings = "\n".join(speech.warnings).encode("ascii")
    wire.send(sock, wire.SPEECH, struct.pack("<d", duration_s), warnings)
    for block in speech.blocks:
        head = struct.pack("<I", len(block.output))
        wire.send(sock, wire.BLOCK, head, block.output.tobytes(), block.model.tobytes())
        _limit_step()
    wire.send(sock, wire.END)


def _refuse(sock: socket.socket, code: str, detail: str) -> None:
    with contextlib.suppress(OSError):
        wire.send_json(sock, wire.ERROR, {"code": code, "detail": detail})


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))

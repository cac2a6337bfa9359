"""The process from which peers are forked: aiortc is loaded once, and its memory is shared."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from server.webrtc import peer

_NOBODY = 65534
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38  # linux/prctl.h
_MORE_BYTES = 1 << 30  # that a peer may map, beyond what the template has


def main(control: socket.socket) -> None:
    """Fork a peer for every descriptor that comes on ``control``, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # peers are not waited for
    gc.collect()
    gc.freeze()  # a collection would touch every object, and so copy every shared page
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        try:
            pid = os.fork()
        except OSError:  # out of processes or memory: this client's loss alone
            os.close(descriptors[0])
            continue
        if pid == 0:
            status = 1
            try:
                control.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _give_up_privileges()
                asyncio.run(peer.serve(socket.socket(fileno=descriptors[0])))
                status = 0
            finally:
                os._exit(status)
        os.close(descriptors[0])


def _give_up_privileges() -> None:
    """A peer needs its socket and the network, but no user that can do more, no larger files, and
    no more memory than `_MORE_BYTES`."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + _MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))

"""A UDP relay that loses, delays and throttles packets, between two WebRTC peers."""

from __future__ import annotations

import asyncio
import random
import re
import time
from typing import Any

_CANDIDATE = re.compile(r"a=candidate:(\S+) (\d) udp (\d+) 127\.0\.0\.1 (\d+) typ host\S*")
_QUEUE_S = 0.25  # what does not fit into so much of a slow line is lost


class LossyRelay:
    """Stands before the server's address in its answer; the client sees no other.

    ``loss``: share of packets lost each way; ``jitter_s``: most that one is delayed;
    ``bit_rate``: of the line to the client, 0 for any.
    """

    def __init__(self, *, loss: float = 0.0, jitter_s: float = 0.0, bit_rate: int = 0) -> None:
        self.loss, self.jitter_s, self.bit_rate = loss, jitter_s, bit_rate
        self.lost = self.passed = 0
        self.overrun_s = 0.0  # when the line was last too slow
        self._random = random.Random(1)
        self._server = ("127.0.0.1", 0)
        self._client: Any = None
        self._front: Any = None
        self._back: Any = None
        self._free_s = 0.0

    async def __aenter__(self) -> LossyRelay:
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(
            lambda: _Side(self._from_client), ("127.0.0.1", 0)
        )
        self._back, _ = await loop.create_datagram_endpoint(
            lambda: _Side(self._from_server), ("127.0.0.1", 0)
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        self._front.close()
        self._back.close()

    def answer(self, sdp: str) -> str:
        """The server's answer, with this relay as its only address."""
        port = self._front.get_extra_info("sockname")[1]
        found = _CANDIDATE.search(sdp)
        assert found is not None, sdp
        self._server = ("127.0.0.1", int(found[4]))
        kept = [line for line in sdp.splitlines() if not line.startswith("a=candidate:")]
        mine = f"a=candidate:{found[1]} {found[2]} udp {found[3]} 127.0.0.1 {port} typ host"
        at = next(i for i, line in enumerate(kept) if line.startswith("a=ice-ufrag"))
        return "\r\n".join([*kept[:at], mine, *kept[at:], ""])

    def _from_client(self, data: bytes, address: Any) -> None:
        self._client = address
        self._pass(self._back, data, self._server)

    def _from_server(self, data: bytes, address: Any) -> None:
        if self._client is None:
            return
        now_s, wait_s = time.monotonic(), 0.0
        if self.bit_rate:
            start_s = max(now_s, self._free_s)
            if start_s - now_s > _QUEUE_S:
                self.lost += 1
                self.overrun_s = now_s
                return
            self._free_s = start_s + 8 * len(data) / self.bit_rate
            wait_s = self._free_s - now_s
        self._pass(self._front, data, self._client, wait_s)

    def _pass(self, to: Any, data: bytes, address: Any, wait_s: float = 0.0) -> None:
        if self._random.random() < self.loss:
            self.lost += 1
            return
        self.passed += 1
        wait_s += self._random.uniform(0, self.jitter_s)
        asyncio.get_running_loop().call_later(wait_s, _send, to, data, address)


def _send(to: Any, data: bytes, address: Any) -> None:
    if not to.is_closing():
        to.sendto(data, address)


class _Side(asyncio.DatagramProtocol):
    def __init__(self, received: Any) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._received(data, addr)


def without_candidates(sdp: str) -> str:
    """An offer whose client is found by the address its checks come from."""
    return (
        "\r\n".join(line for line in sdp.splitlines() if not line.startswith("a=candidate:"))
        + "\r\n"
    )

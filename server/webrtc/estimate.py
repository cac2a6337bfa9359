"""How much a client is sent, by what it says it can receive and what it has lost."""

from __future__ import annotations

from server.webrtc.tracks import FIRST_BIT_RATE

_SOUND_BIT_RATE = 64_000  # of what the client receives, with its headers
_VIDEO_SHARE = 0.9  # of what is left, for pictures; the rest is for packets sent again
_FRESH_S = 5.0  # an estimate's life
_MARGIN = 1.25  # of the stream's rate, before it is sent as it is again
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 80.0  # before that, twice as long each time it was too much
_SMOOTHING = 0.9
_RESENT_A_SECOND, _RESENT_AT_ONCE = 40, 80  # packets; at 1 Mbit/s about 110 are sent a second


class RateWatch:
    """Follows a client's estimates (REMB) and the stream's own rate, in bits a second."""

    def __init__(self) -> None:
        self._stream = 0.0
        self._estimate: tuple[int, float] | None = None
        self._copies = True
        self._since_s = 0.0
        self._wait_s = _FIRST_WAIT_S

    def estimated(self, bit_rate: int, now_s: float) -> None:
        """The client can receive so much in all."""
        self._estimate = bit_rate, now_s

    def copied(self, bits: int, duration_s: float) -> None:
        """The stream has so many bits in so many seconds."""
        if duration_s:
            rate = bits / duration_s
            old = self._stream or rate
            self._stream = _SMOOTHING * old + (1 - _SMOOTHING) * rate

    def choose(self, now_s: float) -> tuple[bool, int]:
        """Whether to send the stream as it is from here on, and else at what rate."""
        if self._estimate is None or now_s - self._estimate[1] > _FRESH_S:
            return self._copies, FIRST_BIT_RATE
        room = int(_VIDEO_SHARE * max(0, self._estimate[0] - _SOUND_BIT_RATE))
        if self._copies and room < self._stream:
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S) if self._since_s else self._wait_s
            self._copies, self._since_s = False, now_s
        elif not self._copies and now_s - self._since_s > self._wait_s:
            self._copies = room > _MARGIN * self._stream
        return self._copies, room


class ResendBudget:
    """Limits how many packets are sent again.

    A line that is too slow loses many, and would lose all if it had to carry them twice.
    """

    def __init__(self) -> None:
        self._left, self._at_s = float(_RESENT_AT_ONCE), 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more may be sent again."""
        self._left += (now_s - self._at_s) * _RESENT_A_SECOND
        self._left, self._at_s = min(self._left, _RESENT_AT_ONCE), now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

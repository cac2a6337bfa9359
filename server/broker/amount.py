"""How much room a job takes, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """Bytes that a job takes."""

    redis_bytes: int = 0
    folder_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.redis_bytes + other.redis_bytes, self.folder_bytes + other.folder_bytes)


NOTHING = Amount()


def amount(size: int, *, in_folder: bool) -> Amount:
    """``size`` bytes in the shared folder, or else in Redis."""
    return Amount(0, size) if in_folder else Amount(size)

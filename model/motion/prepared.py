"""Renderers that were prepared before, for the next one who asks for the same portrait."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from model.rendering.renderer import PortraitRenderer
from model.types import Reference

Prepare = Callable[[Reference, int, str], PortraitRenderer]


class PreparedRenderers:
    """Up to ``most`` renderers, the longest unused goes first; safe to share between threads.

    Preparing takes as long as three windows of the network, and is the greater part of a live
    session's first fragment. Two who ask for a new one at once both prepare it.
    """

    def __init__(self, prepare: Prepare, most: int) -> None:
        if most < 1:
            raise ValueError(f"most = {most}, expected at least 1")
        self._prepare, self._most = prepare, most
        self._kept: OrderedDict[tuple[bytes, int, str], PortraitRenderer] = OrderedDict()
        self._lock = Lock()

    def renderer(self, reference: Reference, size: int, framing: str) -> PortraitRenderer:
        """A renderer that others may draw with, too. Raises what ``prepare`` raises."""
        key = (_digest(reference), size, framing)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is None:
            kept = self._prepare(reference, size, framing)
            with self._lock:
                self._kept[key] = kept
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
        return kept


def _digest(reference: Reference) -> bytes:
    """Of all that a renderer is made from."""
    digest = hashlib.sha256()
    for name, array in sorted(reference.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.digest()

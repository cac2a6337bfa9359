"""The person mask: one of the whole picture and a finer one around the head."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from model.portrait.framing import Frame
from model.types import Floats


@dataclass(frozen=True)
class PersonMask:
    """``whole`` (h, w) 0..1 covers the picture, ``close`` (s, s) 0..1 the square around the head.

    ``square`` is left, top and side of that square in the picture's pixels; ``width`` and
    ``height`` are the picture's.
    """

    whole: Floats
    close: Floats
    square: tuple[float, float, float]
    width: int
    height: int

    def framed(self, view: Frame, pad: int) -> Floats:
        """The mask of the padded frame: (H + 2 pad, W + 2 pad), the finer one on top."""
        big = cv2.resize(self.whole, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        far = np.asarray(view.cut(big, pad), np.float32)
        left, top, side = self.square
        texel = side / self.close.shape[0]
        scale = texel * view.scale
        matrix = np.array(
            [
                [scale, 0.0, (left - view.corner[0]) * view.scale + pad + 0.5 * scale - 0.5],
                [0.0, scale, (top - view.corner[1]) * view.scale + pad + 0.5 * scale - 0.5],
            ]
        )
        size = (far.shape[1], far.shape[0])
        # Confidence in the finer mask falls towards its border, where it had no more context.
        ramp = np.minimum(np.arange(self.close.shape[0]) + 1, 12) / 12.0
        confidence = np.minimum(ramp, ramp[::-1]).astype(np.float32)
        near = cv2.warpAffine(self.close, matrix, size, flags=cv2.INTER_LINEAR)
        share = cv2.warpAffine(
            np.outer(confidence, confidence), matrix, size, flags=cv2.INTER_LINEAR
        )
        return np.asarray(far * (1.0 - share) + near * share, np.float32)

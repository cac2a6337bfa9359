"""From a decoded picture to a prepared reference, with errors as a client gets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.portrait.face_tracker import NoFaceError
from model.types import Reference
from server.errors import ServiceError

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline


def encode_portrait(pipeline: AvatarPipeline, picture: NDArray[np.uint8]) -> Reference:
    """``picture`` (H, W, 3) RGB. Blocks for some tens of milliseconds.

    One call at a time, as the trackers are shared. Raises `ServiceError` ``no_face``.
    """
    try:
        return pipeline.space.encode_reference(picture)
    except NoFaceError as error:
        raise ServiceError("no_face", str(error)) from error

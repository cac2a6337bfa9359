"""An uploaded picture in, a prepared reference out. Knows the model's errors and what a client
is told of them; does not know jobs or keys."""

from __future__ import annotations

from model.conditioning import Reference
from model.pipeline import AvatarPipeline
from model.portrait import NoFaceError, PictureError, load_picture
from server.errors import ServiceError


def encode_portrait(pipeline: AvatarPipeline, blob: bytes) -> Reference:
    """Blocks for some tens of milliseconds; one call at a time, as the trackers are shared.

    Raises `ServiceError` ``unsupported_media`` or ``no_face``.
    """
    try:
        return pipeline.space.encode_reference(load_picture(blob))
    except PictureError as error:
        raise ServiceError("unsupported_media", str(error)) from error
    except NoFaceError as error:
        raise ServiceError("no_face", str(error)) from error

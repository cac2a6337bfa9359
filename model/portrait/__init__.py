"""From a picture to a tracked face: decoding, detection, the 478-point mesh, person mask, crop."""

from model.portrait.landmarks import Face, FaceTracker, NoFaceError
from model.portrait.picture import PictureError, load_picture

__all__ = ["Face", "FaceTracker", "NoFaceError", "PictureError", "load_picture"]

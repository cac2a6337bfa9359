"""FADA avatars in Pipecat: speech of any TTS in, the picture of a talking person out."""

from pipecat_fada.version import __version__
from pipecat_fada.video import FadaVideoService, FadaVideoSettings

__all__ = ["FadaVideoService", "FadaVideoSettings", "__version__"]

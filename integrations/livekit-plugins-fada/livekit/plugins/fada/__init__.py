"""FADA plugin for LiveKit Agents: a talking avatar from one portrait, on a service of your own."""

from livekit.agents import Plugin

from .avatar import AvatarSession
from .errors import FadaException
from .log import logger
from .version import __version__
from .video_generator import FadaVideoGenerator

__all__ = ["AvatarSession", "FadaException", "FadaVideoGenerator", "__version__"]


class FadaPlugin(Plugin):
    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__ or __name__, logger)


Plugin.register_plugin(FadaPlugin())

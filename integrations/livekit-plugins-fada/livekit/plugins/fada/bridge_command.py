"""``fada livekit-bridge``, or ``fada-livekit-bridge`` where the package `fada` is not installed."""

from __future__ import annotations

import argparse
import os
import sys

from aiohttp import web

from .avatar import DEFAULT_API_URL
from .bridge import Bridge, BridgeSettings

_EPILOG = """\
FADA_LIVEKIT_BRIDGE_KEY  needed: the key that agents send
FADA_LIVEKIT_HOSTS       needed: LiveKit servers that may be joined, host or host:port, with commas
FADA_API_URL             the service (http://127.0.0.1:8000)
FADA_API_KEY             its key, if it asks for one
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8900, help="port to listen on")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal; 2 if a setting is missing."""
    key = os.environ.get("FADA_LIVEKIT_BRIDGE_KEY", "")
    names = os.environ.get("FADA_LIVEKIT_HOSTS", "").split(",")
    hosts = frozenset(name.strip().lower() for name in names if name.strip())
    for name, value in (("FADA_LIVEKIT_BRIDGE_KEY", key), ("FADA_LIVEKIT_HOSTS", hosts)):
        if not value:
            print(f"fada livekit-bridge: {name} is not set", file=sys.stderr)
            return 2
    settings = BridgeSettings(
        key=key,
        hosts=hosts,
        api_url=os.environ.get("FADA_API_URL") or DEFAULT_API_URL,
        api_key=os.environ.get("FADA_API_KEY") or None,
    )

    async def app() -> web.Application:
        return Bridge(settings).app()

    web.run_app(app(), host=options.host, port=options.port)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="fada-livekit-bridge",
        description="Join LiveKit rooms as avatars, for agents elsewhere.",
    )
    add_arguments(parser)
    raise SystemExit(run(parser.parse_args()))

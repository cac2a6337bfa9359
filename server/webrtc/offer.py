"""What the API asks of a peer, and why a peer refuses."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import asdict, dataclass

from server.webrtc.candidates import Network, own_networks

ICE_SERVER = re.compile(
    r"(?P<scheme>stuns?|turns?):((?P<user>[^@:\s]+):(?P<password>[^@\s]+)@)?"
    r"(?P<place>[\w.-]+(:\d+)?(\?transport=(udp|tcp))?)",
    re.ASCII,
)


class Refused(Exception):
    """An offer that is not answered; ``code`` is one of `server.errors.KINDS`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Offer:
    """A client's offer and what the service allows.

    ``networks``: inner ones whose candidates are tried; ``None``: this machine's own addresses.
    ``loopback``: the service is reached from this machine only. ``audio``: the avatar's sound is
    sent.
    """

    sdp: str
    ice_servers: tuple[str, ...]
    networks: tuple[str, ...] | None
    loopback: bool
    audio: bool

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Offer:
        return cls(**json.loads(text))

    def allowed(self) -> tuple[Network, ...]:
        """The networks, as `is_allowed` takes them."""
        if self.networks is None:
            return own_networks()
        return tuple(ipaddress.ip_network(one, strict=False) for one in self.networks)


def ice_server(url: str) -> dict[str, str]:
    """Address and credentials of ``scheme:[user:password@]host[:port]``, as aiortc takes them."""
    match = ICE_SERVER.fullmatch(url)
    if match is None:
        raise ValueError("an ICE server, expected stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT")
    server = {"urls": f"{match['scheme']}:{match['place']}"}
    if match["user"]:
        server |= {"username": match["user"], "credential": match["password"]}
    return server

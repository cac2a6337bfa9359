"""Which of a client's ICE candidates are tried: none that points into a network of ours.

A candidate is an address that the client names and this service then sends packets to. Without a
limit, anybody could have it probe hosts that only it can reach.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_CANDIDATE, _END = "a=candidate:", "a=end-of-candidates"
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def own_networks() -> tuple[Network, ...]:
    """This machine's own addresses, loopback included."""
    import ifaddr  # aiortc brings it

    texts = [ip.ip if ip.is_IPv4 else ip.ip[0] for card in ifaddr.get_adapters() for ip in card.ips]
    return *_LOOPBACK, *(ipaddress.ip_network(str(text)) for text in texts)


def is_allowed(address: str, networks: Collection[Network]) -> bool:
    """Whether ``address`` is public or in one of ``networks``; never for a name."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # an mDNS name: to resolve it would ask the inner network
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_multicast or ip.is_unspecified:
        return False
    return ip.is_global or any(ip.version == net.version and ip in net for net in networks)


def without_inner_candidates(sdp: str, networks: Collection[Network]) -> str:
    """``sdp`` with allowed candidates only, and without an end of candidates.

    Without the end, a client is found by the address that its own checks come from.
    """
    kept = []
    for line in sdp.splitlines():
        if line.startswith(_END):
            continue
        if line.startswith(_CANDIDATE):
            words = line.split()
            if len(words) < 5 or not is_allowed(words[4], networks):
                continue
        kept.append(line)
    return "\r\n".join([*kept, ""])

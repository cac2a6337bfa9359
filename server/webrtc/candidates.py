"""Which of a client's ICE candidates are tried: none that points into a network of ours.

A candidate is an address that the client names and this service then sends packets to. Without a
limit, anybody could have it probe hosts that only it can reach.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_CANDIDATE, _END = "a=candidate:", "a=end-of-candidates"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def own_networks() -> tuple[Network, ...]:
    """This machine's own addresses, loopback included."""
    import ifaddr  # aiortc brings it

    texts = [ip.ip if ip.is_IPv4 else ip.ip[0] for card in ifaddr.get_adapters() for ip in card.ips]
    return *_LOOPBACK, *(ipaddress.ip_network(str(text)) for text in texts)


def _ipv4_within(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to ``ip`` may end at: mapped, 6to4 or NAT64 (RFC 6052)."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def is_allowed(address: str, networks: Collection[Network]) -> bool:
    """Whether ``address`` is public or in one of ``networks``; never for a name."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # an mDNS name: to resolve it would ask the inner network
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        ip = _ipv4_within(ip) or ip
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

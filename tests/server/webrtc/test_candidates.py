from __future__ import annotations

import ipaddress

import pytest

from server.webrtc.candidates import is_allowed, own_networks, without_inner_candidates
from server.webrtc.offer import ice_server

OFFICE = (ipaddress.ip_network("192.168.7.0/24"), ipaddress.ip_network("fd00::/64"))


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("192.168.7.9", True),
        ("fd00::9", True),
        ("::ffff:192.168.7.9", True),
        ("192.168.8.9", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::808:808", True),  # 8.8.8.8 by NAT64
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),  # 10.0.0.1 by 6to4
        ("10.0.0.1", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("4f3c.local", False),
        ("localhost", False),
    ],
)
def test_inner_addresses_are_tried_only_where_they_are_allowed(address: str, allowed: bool) -> None:
    assert is_allowed(address, OFFICE) is allowed


def test_on_loopback_this_machine_is_allowed_and_no_other() -> None:
    own = own_networks()
    assert is_allowed("127.0.0.1", own)
    assert not is_allowed("169.254.169.254", own)


def test_an_offer_keeps_its_allowed_candidates_alone() -> None:
    offer = "v=0\r\na=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\na=candidate:cut\r\n"
    kept = "a=candidate:2 1 udp 1 8.8.8.8 9 typ srflx raddr 0.0.0.0 rport 0\r\n"
    ended = "a=end-of-candidates\r\na=mid:0\r\n"
    assert without_inner_candidates(offer + kept + ended, ()) == f"v=0\r\n{kept}a=mid:0\r\n"


def test_ice_servers_may_have_credentials() -> None:
    assert ice_server("stun:a.example:3478") == {"urls": "stun:a.example:3478"}
    assert ice_server("turns:ann:s3:cret@b.example?transport=tcp") == {
        "urls": "turns:b.example?transport=tcp",
        "username": "ann",
        "credential": "s3:cret",
    }
    for bad in ("http://a.example", "stun:", "turn:ann@b.example x"):
        with pytest.raises(ValueError, match="expected stun:"):
            ice_server(bad)

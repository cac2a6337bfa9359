"""Which sections of an offer carry the avatar and the microphone, and in which codec."""

from __future__ import annotations

from collections.abc import Collection

from aiortc import RTCPeerConnection, RTCRtpTransceiver
from aiortc.sdp import MediaDescription

from server.webrtc.offer import Refused
from server.webrtc.tracks import Codec

# Of a section, by whether it sends and receives.
_DIRECTIONS = {
    (True, True): "sendrecv",
    (True, False): "sendonly",
    (False, True): "recvonly",
    (False, False): "inactive",
}


def taking(
    connection: RTCPeerConnection, sections: list[MediaDescription], kind: str
) -> RTCRtpTransceiver | None:
    """That of the first section in which the client takes ``kind``."""
    return _first(connection, sections, kind, ("recvonly", "sendrecv"))


def limit_directions(
    connection: RTCPeerConnection,
    sections: list[MediaDescription],
    sending: Collection[RTCRtpTransceiver | None],
) -> None:
    """Receive one microphone and nothing else, which would be decoded for no one."""
    microphone = _first(connection, sections, "audio", ("sendonly", "sendrecv"))
    for one in connection.getTransceivers():
        one.direction = _DIRECTIONS[one in sending, one is microphone]


def choose_codec(video: RTCRtpTransceiver) -> Codec:
    """H.264 where the client takes it, for that need not be encoded again; else VP8.

    Raises `Refused` for a client that takes neither.
    """
    offered = {codec.name for codec in video._codecs}
    wanted: tuple[Codec, ...] = ("H264", "VP8")
    for codec in wanted:
        if codec in offered:
            break
    else:
        raise Refused(
            "invalid_option",
            "the offer has neither H.264 (constrained baseline, packetization-mode=1) nor VP8",
        )
    kept = {c.payloadType for c in video._codecs if c.name == codec}
    video._codecs = [
        c for c in video._codecs if c.payloadType in kept or c.parameters.get("apt") in kept
    ]
    return codec


def take_opus(audio: RTCRtpTransceiver) -> None:
    """Raises `Refused` for a client that does not take it: the sound is encoded once, as Opus."""
    audio._codecs = [codec for codec in audio._codecs if codec.name.lower() == "opus"]
    if not audio._codecs:
        raise Refused(
            "invalid_option",
            "the offer takes sound without Opus; with audio=false the avatar sends none, and a "
            "microphone may be G.711 or G.722",
        )


def _first(
    connection: RTCPeerConnection,
    sections: list[MediaDescription],
    kind: str,
    directions: tuple[str, str],
) -> RTCRtpTransceiver | None:
    by_mid = {one.mid: one for one in connection.getTransceivers()}
    for section in sections:
        transceiver = by_mid.get(section.rtp.muxId)
        if transceiver and section.kind == kind and section.direction in directions:
            return transceiver
    return None

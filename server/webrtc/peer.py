"""One client's WebRTC, in a process of its own: from its offer to the end of its connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections import deque
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import aioice.ice
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.exceptions import OperationError
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    unpack_remb_fci,
)
from aiortc.sdp import SessionDescription
from av.audio.frame import AudioFrame
from av.packet import Packet

from media import boxes
from server.webrtc import wire
from server.webrtc.candidates import without_inner_candidates
from server.webrtc.estimate import RateWatch, ResendBudget
from server.webrtc.microphone import Microphone, SilenceGate, receive_in_order
from server.webrtc.offer import Offer, Refused, ice_server
from server.webrtc.playout import Playout
from server.webrtc.sections import choose_codec, limit_directions, take_opus, taking
from server.webrtc.tracks import Codec, Picture, Sound

log = logging.getLogger("fada.webrtc")

_CONNECT_S = 10.0
_SILENT_S, _LOOK_S = 10.0, 2.0
_MAX_UNSENT_BYTES = 1 << 20  # of events that the client does not take
_MOST_SECTIONS = 8
_MAX_WAITING_EVENTS = 64  # for a data channel
_LAST_EVENT_S = 2.0  # for the last event to arrive before the connection is closed


class OutTrack(MediaStreamTrack):
    """A track whose packets are ready to send."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._packets: asyncio.Queue[Packet[Any]] = asyncio.Queue()

    def put(self, packet: Packet[Any]) -> None:
        self._packets.put_nowait(packet)

    async def recv(self) -> Packet[Any]:  # aiortc takes frames or packets
        return await self._packets.get()


class Peer:
    """Carries a session between ``link``, the API's, and the client that made ``offer``."""

    def __init__(self, link: wire.Link, offer: Offer) -> None:
        self._link, self._offer = link, offer
        servers = [RTCIceServer(**ice_server(url)) for url in offer.ice_servers]
        self._connection = RTCPeerConnection(
            RTCConfiguration(iceServers=servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        )
        self._video, self._audio = OutTrack("video"), OutTrack("audio")
        self._playout = Playout(self._send)
        self._codec: Codec = "H264"
        self._picture: Picture | None = None
        self._sound: Sound | None = None
        self._rate = RateWatch()
        self._pcm = b""  # of the fragment that follows
        # Fragments and their sound from the last keyframe on, until connected.
        self._held: list[tuple[bytes, bytes]] = []
        self._channel: RTCDataChannel | None = None
        self._unsent: deque[str] = deque()
        self._listens = False
        self._timescale = 1
        self._connected, self._gone = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Check the offer, answer it once the API asks, then carry messages until either end has
        gone."""
        try:
            answer = await self._prepare_answer()
            await self._link.send(wire.ACCEPTED, wire.WITH_SOUND if self._sends_sound else b"")
            await self._link.receive()
            sdp = await self._begin(answer)
            await self._link.send_json(wire.ANSWER, {"sdp": sdp})
            self._start(self._deliver())
            self._start(self._playout.run())
            self._start(self._limit_connecting())
            self._start(self._notice_silence())
            await self._gone.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_LAST_EVENT_S):
                    await self._connection.close()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            if not isinstance(task.exception(), ConnectionError | OSError):
                log.error("a WebRTC session failed", exc_info=task.exception())
            self._gone.set()

    async def _prepare_answer(self) -> RTCSessionDescription:
        """The answer, without candidates; raises `Refused` for an offer that has none."""
        pc = self._connection
        pc.on("track", self._on_track)
        pc.on("datachannel", self._on_channel)
        pc.on("connectionstatechange", self._on_state)
        sdp = without_inner_candidates(self._offer.sdp, self._offer.allowed())
        try:
            described = SessionDescription.parse(sdp)
            if not 0 < len(described.media) <= _MOST_SECTIONS:
                raise Refused(
                    "bad_request",
                    f"{len(described.media)} media sections, expected 1 to {_MOST_SECTIONS}",
                )
            await pc.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="offer"))
        except Refused:
            raise
        except OperationError as error:
            raise Refused(
                "invalid_option",
                "no codec in common, expected H.264 (constrained baseline, packetization-mode=1) "
                "or VP8 for video, and Opus, G.722 or G.711 for sound",
            ) from error
        except Exception as error:  # whatever hostile text does to the parser
            raise Refused("bad_request", f"the offer is not usable SDP: {error}") from error
        video = taking(pc, described.media, "video")
        if video is None:
            raise Refused(
                "invalid_option",
                "the offer takes no video, expected a section 'm=video' that is recvonly or "
                "sendrecv",
            )
        self._codec = choose_codec(video)
        video.sender.replaceTrack(self._video)
        self._watch_feedback(video.sender)
        audio = taking(pc, described.media, "audio") if self._offer.audio else None
        if audio is not None:
            take_opus(audio)
            audio.sender.replaceTrack(self._audio)
        limit_directions(pc, described.media, {video, audio})
        try:
            return await pc.createAnswer()
        except Exception as error:
            raise _unanswerable(error) from error

    async def _begin(self, answer: RTCSessionDescription) -> str:
        """Gather candidates and begin to connect; returns the whole SDP."""
        try:
            await self._connection.setLocalDescription(answer)
        except Exception as error:
            raise _unanswerable(error) from error
        return self._connection.localDescription.sdp

    def _watch_feedback(self, sender: RTCRtpSender) -> None:
        handle, resend, budget = sender._handle_rtcp_packet, sender._retransmit, ResendBudget()

        async def watched(packet: Any) -> None:
            self._feedback(packet, sender._ssrc)
            await handle(packet)

        async def resend_some(sequence_number: int) -> None:
            if budget.take(time.monotonic()):
                await resend(sequence_number)

        # aiortc offers no other way to the client's estimate, and resends all that is asked for.
        setattr(sender, "_handle_rtcp_packet", watched)  # noqa: B010
        setattr(sender, "_retransmit", resend_some)  # noqa: B010

    def _feedback(self, packet: Any, ssrc: int) -> None:
        """What the client reports of the video: the rate that it can receive, lost pictures."""
        if not isinstance(packet, RtcpPsfbPacket):
            return
        if packet.fmt in (RTCP_PSFB_PLI, RTCP_PSFB_FIR) and self._picture is not None:
            self._picture.request_keyframe()
        elif packet.fmt == RTCP_PSFB_APP:
            with contextlib.suppress(ValueError):
                rate, ssrcs = unpack_remb_fci(packet.fci)
                if ssrc in ssrcs:
                    self._rate.estimated(rate, time.monotonic())

    @property
    def _sends_sound(self) -> bool:
        senders = self._connection.getSenders()
        return any(one.track is self._audio for one in senders)

    def _on_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected" and not self._connected.is_set():
            self._connected.set()
            held, self._held = self._held, []
            for fragment, pcm in held:
                self._play(fragment, pcm)
        elif state in ("failed", "closed"):
            self._gone.set()

    async def _limit_connecting(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._connected.wait()
        except TimeoutError:
            log.info("a WebRTC client did not connect within %g s", _CONNECT_S)
            self._gone.set()

    async def _notice_silence(self) -> None:
        """End a session whose client has sent nothing for a while, not even reports."""
        await self._connected.wait()
        before, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < _SILENT_S:
            await asyncio.sleep(_LOOK_S)
            stats = (await self._connection.getStats()).values()
            received = sum(one.packetsReceived for one in stats if one.type == "transport")
            if received != before:
                before, since_s = received, time.monotonic()
        log.info("a WebRTC client has been silent for %g s", _SILENT_S)
        self._gone.set()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._listens:
            self._listens = True
            for receiver in self._connection.getReceivers():
                if receiver.track is track:
                    receive_in_order(receiver)
            self._start(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        microphone, gate = Microphone(), SilenceGate()
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                if pcm := gate.passed(microphone.pcm(frame)):
                    await self._link.send(wire.AUDIO, pcm)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None:
            return
        self._channel = channel
        channel.on("message", self._on_message)
        while self._unsent:
            channel.send(self._unsent.popleft())

    def _on_message(self, message: str | bytes) -> None:
        # A binary message becomes a text that is no command, and so is refused with a reason.
        text = message if isinstance(message, str) else '{"type": "binary"}'
        self._start(self._link.send(wire.COMMAND, text.encode(errors="replace")))

    async def _deliver(self) -> None:
        """Pass on what the API sends, until it closes."""
        try:
            while True:
                kind, body = await self._link.receive()
                if kind == wire.EVENT:
                    self._event(body.decode())
                elif kind == wire.SOUND:
                    self._pcm = body
                elif kind == wire.MEDIA:
                    pcm, self._pcm = self._pcm, b""
                    self._media(body, pcm)
        except ConnectionError:
            await self._flush()
            self._gone.set()

    def _event(self, text: str) -> None:
        fields = json.loads(text)
        if fields["type"] == "interrupted":
            self._playout.skip_to(fields["at_s"])
        if self._channel is None or self._channel.readyState != "open":
            # A client without a channel cares for pictures alone.
            if fields["type"] != "fragment" or len(self._unsent) < _MAX_WAITING_EVENTS:
                self._unsent.append(text)
        else:
            self._channel.send(text)
        unsent = sum(map(len, self._unsent))
        if unsent + (self._channel.bufferedAmount if self._channel else 0) > _MAX_UNSENT_BYTES:
            log.info("a WebRTC client does not take its events")
            self._gone.set()

    async def _flush(self) -> None:
        """Let the last pictures and events leave."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_EVENT_S):
                await self._playout.empty()
                while self._channel is not None and self._channel.bufferedAmount:
                    await asyncio.sleep(0.02)

    def _media(self, body: bytes, pcm: bytes) -> None:
        if self._picture is None:
            description = boxes.read_init_segment(body)
            self._picture = Picture(description, self._codec)
            if self._sends_sound:
                self._sound = Sound()
            self._timescale = description.timescale
        elif self._connected.is_set():
            self._play(body, pcm)
        else:
            if any(
                run.track == boxes.VIDEO_TRACK and run.sync for run in boxes.read_fragment(body)
            ):
                self._held.clear()
            self._held.append((body, pcm))

    def _play(self, fragment: bytes, pcm: bytes) -> None:
        assert self._picture is not None
        packets: list[tuple[float, bool, Packet[Any]]] = []
        duration_s = 0.0
        for run in boxes.read_fragment(fragment):
            if run.track != boxes.VIDEO_TRACK:  # its sound came as PCM
                continue
            duration_s = sum(run.durations) / self._timescale
            self._rate.copied(8 * sum(map(len, run.samples)), duration_s)
            if run.sync:
                self._choose_rate()
            packets += _timed(self._picture.packets(run), video=True)
            if self._sound is not None:
                begin_s = Fraction(run.decode_time, self._timescale)
                packets += _timed(self._sound.packets(pcm, begin_s), video=False)
        self._playout.add(packets, duration_s)

    def _choose_rate(self) -> None:
        assert self._picture is not None
        copy, bit_rate = self._rate.choose(time.monotonic())
        self._picture.wants_copy = copy and self._picture.can_copy
        self._picture.bit_rate = bit_rate

    def _send(self, video: bool, packet: Packet[Any]) -> None:
        (self._video if video else self._audio).put(packet)


def _timed(packets: Iterable[Packet[Any]], *, video: bool) -> list[tuple[float, bool, Packet[Any]]]:
    return [(float((p.pts or 0) * p.time_base), video, p) for p in packets]


def _unanswerable(error: Exception) -> Refused:
    return Refused("invalid_option", f"the offer cannot be answered: {error}")


async def serve(sock: socket.socket) -> None:
    """Read an offer from the API and carry its session."""
    link = await wire.Link.over(sock)
    try:
        _, body = await link.receive()
        offer = Offer.from_json(body)
        if offer.loopback:
            _gather_loopback()
        peer = Peer(link, offer)
        try:
            await peer.run()
        except Refused as refused:
            await link.send_json(wire.REFUSAL, {"code": refused.code, "detail": refused.detail})
    except ConnectionError:
        pass  # the API has gone
    finally:
        link.close()


def _gather_loopback() -> None:
    """Offer 127.0.0.1 as well, which aioice leaves out."""
    addresses = aioice.ice.get_host_addresses

    def with_loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return ["127.0.0.1", *addresses(use_ipv4, use_ipv6)]

    aioice.ice.get_host_addresses = with_loopback

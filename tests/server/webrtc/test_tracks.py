"""What WebRTC makes of a session's fragments."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from av.audio.codeccontext import AudioCodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from media import boxes, marks
from media.fmp4 import FragmentedMP4Muxer
from server.webrtc.playout import Playout
from server.webrtc.tracks import Codec, Picture, Sound

SIZE, FRAMES, RATE = 128, 48, 48_000
_FULL = 32768
TONE_S = 0.5


def grey(frame: int) -> NDArray[np.uint8]:
    return np.full((SIZE, SIZE, 3), 40 + 4 * frame, np.uint8)


@pytest.fixture(scope="module")
def mp4() -> tuple[boxes.Description, list[boxes.Run]]:
    """Two seconds that grow brighter."""
    muxer = FragmentedMP4Muxer(SIZE, SIZE, 25)
    runs, silence = [], np.zeros(4 * RATE // 25, np.float32)
    for first in range(0, FRAMES, 4):
        runs += boxes.read_fragment(muxer.add(map(grey, range(first, first + 4)), silence))
    return boxes.read_init_segment(muxer.init_segment()), runs


def packets(maker: Any, runs: list[boxes.Run], track: int) -> list[Packet[Any]]:
    return [packet for run in runs if run.track == track for packet in maker.packets(run)]


def brightness(made: list[Packet[Any]], codec: str) -> list[float]:
    decoder = VideoCodecContext.create(codec, "r")
    frames = [frame for packet in [*made, None] for frame in decoder.decode(packet)]
    return [float(frame.to_ndarray(format="gray").mean()) for frame in frames]


def test_what_was_written_is_read(mp4: tuple[boxes.Description, list[boxes.Run]]) -> None:
    description, runs = mp4
    assert (description.video, description.width, description.timescale) == (b"avc1", SIZE, 12_800)
    video = [run for run in runs if run.track == boxes.VIDEO_TRACK]
    assert [run.decode_time for run in video] == [2048 * i for i in range(FRAMES // 4)]
    assert [i for i, run in enumerate(video) if run.sync] == [0, 6]
    assert boxes.fragment(1, runs[:2]) == boxes.fragment(
        1, boxes.read_fragment(boxes.fragment(1, runs[:2]))
    )
    with pytest.raises(ValueError, match="fragment"):
        boxes.read_fragment(boxes.box(b"moof", boxes.box(b"traf")))
    with pytest.raises(ValueError, match="init segment|unpack"):
        boxes.read_init_segment(b"")


@pytest.mark.parametrize(
    ("codec", "copy"), [("H264", True), ("H264", False), ("VP8", False)], ids=str
)
def test_pictures_arrive_as_they_were(
    mp4: tuple[boxes.Description, list[boxes.Run]], codec: Codec, copy: bool
) -> None:
    description, runs = mp4
    picture = Picture(description, codec)
    assert picture.can_copy is (codec == "H264")
    picture.wants_copy = copy
    made = packets(picture, runs, boxes.VIDEO_TRACK)
    assert [packet.pts for packet in made] == [512 * frame for frame in range(FRAMES)]
    seen = brightness(made, "h264" if codec == "H264" else "vp8")
    assert seen == pytest.approx([float(grey(i).mean()) for i in range(FRAMES)], abs=4)
    if codec == "H264":
        assert marks.keyframe_unit()[4:] in bytes(made[0])


def test_a_stream_that_is_encoded_again_begins_anew_at_a_keyframe(
    mp4: tuple[boxes.Description, list[boxes.Run]],
) -> None:
    description, runs = mp4
    picture = Picture(description, "H264")
    made: list[Packet[Any]] = []
    for run in runs:
        if run.track == boxes.VIDEO_TRACK:
            picture.wants_copy = run.decode_time == 0  # from the next keyframe on
            made += picture.packets(run)
    assert len(made) == FRAMES
    assert brightness(made, "h264") == pytest.approx(
        [float(grey(i).mean()) for i in range(FRAMES)], abs=4
    )


def test_less_room_makes_fewer_bytes(mp4: tuple[boxes.Description, list[boxes.Run]]) -> None:
    description, runs = mp4
    rng = np.random.default_rng(0)
    muxer = FragmentedMP4Muxer(SIZE, SIZE, 25)
    busy = [rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8) for _ in range(24)]
    runs = boxes.read_fragment(muxer.add(busy, np.zeros(24 * RATE // 25, np.float32)))
    sizes = []
    for rate in (1_000_000, 100_000):
        picture = Picture(description, "VP8")
        picture.bit_rate = rate
        sizes.append(sum(p.size for p in packets(picture, runs, boxes.VIDEO_TRACK)))
    assert sizes[1] < sizes[0] / 2


def test_sound_stays_in_its_place_and_none_waits_for_the_next_fragment() -> None:
    sound, samples = Sound(), np.arange(FRAMES * RATE // 25)
    tone = np.where(samples < TONE_S * RATE, 0, 15_000 * np.sin(samples / 17)).astype("<i2")
    made: list[Packet[Any]] = []
    for first in range(0, FRAMES, 4):
        pcm = tone[first * RATE // 25 : (first + 4) * RATE // 25].tobytes()
        made += sound.packets(pcm, Fraction(first, 25))
        assert len(made) == 2 * (first + 4)
    decoder = AudioCodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = RATE, "mono"
    begins = []
    for packet in made:
        for frame in decoder.decode(Packet(bytes(packet))):
            loud = np.flatnonzero(np.abs(frame.to_ndarray().ravel() / _FULL) > 0.1)
            if len(loud):
                begins.append((packet.pts + loud[0] / frame.layout.nb_channels) / RATE)
    assert begins[0] == pytest.approx(TONE_S, abs=0.02)
    assert np.diff([packet.pts for packet in made]) == pytest.approx(960)


@pytest.mark.realtime
@pytest.mark.anyio
async def test_both_tracks_are_sent_on_one_clock_that_waits_and_catches_up() -> None:
    sent: list[tuple[float, float, bool]] = []

    def send(video: bool, packet: Packet[Any]) -> None:
        sent.append((time.monotonic(), packet.pts / 1000, video))

    playout = Playout(send)
    running = asyncio.create_task(playout.run())
    for first in range(0, 800, 160):  # ms
        made = []
        for at in range(first, first + 160, 40):
            for video in (True, False):
                packet: Packet[Any] = Packet(b"x")
                packet.pts = at
                made.append((at / 1000, video, packet))
        playout.add(made, 0.16)
        await asyncio.sleep(0.35 if first == 320 else 0.14)  # a stall
    await playout.empty()
    running.cancel()
    begin_s = sent[0][0]
    at = {video: [(s - begin_s, t) for s, t, v in sent if v is video] for video in (True, False)}
    assert [t for _, t in at[True]] == [i * 0.04 for i in range(20)]
    both = zip(at[True], at[False], strict=True)
    assert max(abs(a[0] - b[0]) for a, b in both) < 0.02
    late = [s - t for s, t in at[True]]
    assert min(late) > -0.01
    assert late[11] < 0.1 < late[12]  # after the stall, all goes on as late


@pytest.mark.anyio
async def test_an_interrupt_drops_old_sound_and_hurries_old_pictures() -> None:
    sent: list[tuple[int, bool]] = []
    playout = Playout(lambda video, packet: sent.append((packet.pts or 0, video)))
    made = []
    for at in range(0, 640, 40):
        for video in (True, False):
            packet: Packet[Any] = Packet(b"x")
            packet.pts = at
            made.append((at / 1000, video, packet))
    playout.add(made, 0.64)
    running = asyncio.create_task(playout.run())
    await asyncio.sleep(0)
    playout.skip_to(0.6)
    await playout.empty()
    running.cancel()
    assert [at for at, video in sent if video] == list(range(0, 640, 40))
    assert [at for at, video in sent if not video] in ([600], [0, 600])

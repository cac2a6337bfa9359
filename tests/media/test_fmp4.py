from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from media import encoders
from media.encoders import Encoding
from media.fmp4 import KEY_INTERVAL, SAMPLE_RATE, FragmentedMP4Muxer
from tests.server.media_probe import boxes, probe

FPS = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


def grey(levels: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    frame = np.zeros((size, size, 3), np.uint8)
    for level in levels:
        frame[:] = level
        yield frame


def mux(levels: NDArray[np.uint8], pcm: NDArray[np.float32], hop: int, *, size: int = 64) -> bytes:
    muxer = FragmentedMP4Muxer(size, size, FPS)
    parts = [muxer.init_segment()]
    for start in range(0, len(levels), hop):
        piece = levels[start : start + hop]
        end = (start + hop) * SAMPLES_PER_FRAME if start + hop < len(levels) else len(pcm)
        parts.append(muxer.add(grey(piece, size), pcm[start * SAMPLES_PER_FRAME : end]))
    parts.append(muxer.close())
    return b"".join(parts)


def clicks_and_flashes(seconds: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    levels = np.zeros(seconds * FPS, np.uint8)
    pcm = np.zeros(seconds * SAMPLE_RATE, np.float32)
    tone = 0.9 * np.sin(2 * np.pi * 1000 * np.arange(SAMPLE_RATE // 25) / SAMPLE_RATE)
    for second in range(1, seconds):
        levels[second * FPS] = 255
        pcm[second * SAMPLE_RATE :][: len(tone)] = tone
    return levels, pcm


def test_sound_and_pictures_stay_in_sync_for_a_minute() -> None:
    seen = probe(mux(*clicks_and_flashes(60), hop=8))
    flashes = np.flatnonzero(seen.pictures[:, 0] > 128)
    loud = np.flatnonzero(np.abs(seen.sound) > 0.3)
    # The first loud sample after each quiet stretch of half a second.
    begins = loud[np.diff(loud, prepend=-SAMPLE_RATE) > SAMPLE_RATE // 2]
    clicks_s = seen.sound_start_s + begins / seen.rate
    assert len(flashes) == len(clicks_s) == 59
    assert np.abs(np.array(seen.times_s)[flashes] - clicks_s).max() < 0.005


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 3 * SAMPLE_RATE), hop=st.integers(1, 12))
def test_the_length_is_that_of_the_sound(samples: int, hop: int) -> None:
    frames = -(-samples // SAMPLES_PER_FRAME)
    seen = probe(mux(np.zeros(frames, np.uint8), np.zeros(samples, np.float32), hop))
    assert seen.sound_s == pytest.approx(samples / SAMPLE_RATE, abs=1e-6)
    assert len(seen.times_s) == frames
    assert seen.times_s == pytest.approx(np.arange(frames) / FPS)
    assert seen.sound_start_s == 0


def test_every_add_is_one_whole_fragment() -> None:
    muxer = FragmentedMP4Muxer(64, 64, FPS)
    pcm = np.zeros(8 * SAMPLES_PER_FRAME, np.float32)
    assert [kind for kind, _ in boxes(muxer.init_segment())] == ["ftyp", "uuid", "moov"]
    parts = [muxer.add(grey(np.zeros(8, np.uint8), 64), pcm) for _ in range(3)]
    for part in (*parts, muxer.close()):
        assert [kind for kind, _ in boxes(part)] == ["moof", "mdat"]


@pytest.mark.parametrize("hop", [1, 4, 7, 8, 40])
def test_a_keyframe_begins_the_first_fragment_and_then_about_one_a_second(hop: int) -> None:
    count = 4 * KEY_INTERVAL
    muxer = FragmentedMP4Muxer(64, 64, FPS)
    pcm = np.zeros(hop * SAMPLES_PER_FRAME, np.float32)
    parts = [muxer.add(grey(np.zeros(hop, np.uint8), 64), pcm) for _ in range(max(3, count // hop))]
    blob = muxer.init_segment() + b"".join(parts) + muxer.close()
    apart = hop * -(-KEY_INTERVAL // hop)
    assert np.flatnonzero(probe(blob).keyframes).tolist() == [*range(0, len(parts) * hop, apart)]
    # From any fragment with one on, a player can start.
    late = muxer.init_segment() + b"".join(parts[apart // hop :])
    assert len(probe(late).times_s) == len(parts) * hop - apart


def test_a_fragment_plays_without_later_ones() -> None:
    muxer = FragmentedMP4Muxer(64, 64, FPS)
    pcm = np.zeros(8 * SAMPLES_PER_FRAME, np.float32)
    first = muxer.add(grey(np.zeros(8, np.uint8), 64), pcm)
    seen = probe(muxer.init_segment() + first)
    assert len(seen.times_s) == 8
    assert seen.sound_s > 0.32 - 0.065


def test_colours_are_preserved() -> None:
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [255, 255, 255], [0, 0, 0]])
    muxer = FragmentedMP4Muxer(64, 64, FPS)
    frames = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]
    pcm = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    blob = muxer.init_segment() + muxer.add(frames, pcm) + muxer.close()
    assert np.abs(probe(blob).pictures - colours).max() < 6


def test_sound_is_preserved() -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pcm = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    seen = probe(mux(np.zeros(FPS, np.uint8), pcm, hop=8))
    heard = seen.sound[: len(pcm)]
    settled = slice(1024, len(pcm) - 1024)
    error = heard[settled] - pcm[settled]
    assert np.sqrt((error**2).mean()) < 0.01


def test_the_codec_string_names_what_was_encoded() -> None:
    muxer = FragmentedMP4Muxer(512, 512, FPS)
    video, audio = muxer.codecs.split(",")
    assert audio == "mp4a.40.2"
    assert video.startswith("avc1.") and len(video) == 11
    sps = muxer.init_segment().split(b"avcC")[1]
    assert video == f"avc1.{sps[1:4].hex()}"


@pytest.mark.parametrize(
    ("encoder", "codec"),
    [("openh264", "avc1.42"), ("vp9", "vp09.00.30.08"), ("av1", "av01.0.00M.08")],
)
def test_other_encoders_make_the_same_video(encoder: str, codec: str) -> None:
    try:
        muxer = FragmentedMP4Muxer(128, 128, FPS, encoding=Encoding(encoder))
    except ValueError:
        pytest.skip(f"this PyAV has no {encoder}")
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    frames = [np.full((128, 128, 3), colour, np.uint8) for colour in colours for _ in range(4)]
    pcm = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    first, second = (muxer.add(frames, pcm) for _ in range(2))
    assert muxer.codecs.startswith(codec) and muxer.codecs.endswith(",mp4a.40.2")
    seen = probe(muxer.init_segment() + first + second + muxer.close())
    assert seen.times_s == pytest.approx(np.arange(24) / FPS)
    assert seen.keyframes[0] and sum(seen.keyframes) < 4  # OpenH264 adds some at cuts
    assert np.abs(seen.pictures[[3, 7, 11]] - colours).max() < 14
    resumed = FragmentedMP4Muxer(128, 128, FPS, state=muxer.state())
    assert resumed.init_segment() == muxer.init_segment()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """OpenH264 as a card's encoder; called with False, the card opens no more sessions."""
    libraries = encoders._LIBRARIES

    def works(now: bool) -> None:
        name = libraries["openh264"].name if now else "h264_missing"
        stand_in = replace(libraries["openh264"], name=name, fallback="x264")
        monkeypatch.setitem(libraries, "nvenc", stand_in)

    works(True)
    try:
        encoders.check_encoder("openh264")
    except ValueError:
        pytest.skip("this PyAV has no openh264")
    return works


def test_a_video_of_a_card_goes_on_without_it_and_with_it_again(
    card: Callable[[bool], None],
) -> None:
    """Its init segment describes both encoders; what decodes it need not know which made what."""
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]])
    pcm = np.zeros(4 * SAMPLES_PER_FRAME, np.float32)
    muxer = FragmentedMP4Muxer(128, 128, FPS, encoding=Encoding("nvenc"))
    init, parts = muxer.init_segment(), []
    for there, colour in zip((True, False, True, False), colours, strict=True):
        card(there)
        muxer = FragmentedMP4Muxer(128, 128, FPS, state=muxer.state(), encoding=Encoding())
        parts.append(muxer.add([np.full((128, 128, 3), colour, np.uint8)] * 4, pcm))
    assert muxer.state().encoder == "nvenc"
    seen = probe(init + b"".join(parts) + muxer.close())
    assert seen.times_s == pytest.approx(np.arange(16) / FPS)
    assert np.flatnonzero(seen.keyframes).tolist() == [0, 4, 8, 12]
    assert np.abs(seen.pictures[3::4] - colours).max() < 14


def test_a_card_that_opens_no_more_sessions_leaves_them_to_x264(
    card: Callable[[bool], None],
) -> None:
    card(False)
    muxer = FragmentedMP4Muxer(128, 128, FPS, encoding=Encoding("nvenc"))
    assert muxer.state().encoder == "x264"
    x264 = FragmentedMP4Muxer(128, 128, FPS, encoding=Encoding("x264"))
    assert muxer.init_segment() == x264.init_segment()
    with pytest.raises(ValueError, match="h264_missing"):
        encoders.check_encoder("nvenc")


@pytest.mark.parametrize(("share", "chosen"), [(0.5, "nvenc"), (1.5, "x264")])
def test_the_encoder_that_costs_less_is_chosen(
    card: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, share: float, chosen: str
) -> None:
    costs = {"x264": 2e-3, "nvenc": share * 2e-3}
    monkeypatch.setattr(encoders, "_seconds_per_frame", costs.__getitem__)
    assert encoders.fastest_encoder() == chosen
    card(False)
    assert encoders.fastest_encoder() == "x264"


@pytest.mark.parametrize(("width", "height"), [(63, 64), (64, 63), (0, 64)])
def test_odd_sizes_are_rejected(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        FragmentedMP4Muxer(width, height, FPS)


def test_frames_of_another_size_are_rejected() -> None:
    muxer = FragmentedMP4Muxer(64, 64, FPS)
    with pytest.raises(ValueError, match="shape"):
        muxer.add([np.zeros((32, 64, 3), np.uint8)], np.zeros(1920, np.float32))
    with pytest.raises(ValueError, match="at least one frame"):
        muxer.add([], np.zeros(1920, np.float32))


@settings(max_examples=15, deadline=None)
@given(
    hop=st.integers(1, 10),
    cut=st.integers(1, 12),
    extra=st.integers(-1900, 0),
    again=st.integers(0, 3),
)
def test_another_muxer_continues_a_video_seamlessly(
    hop: int, cut: int, extra: int, again: int
) -> None:
    """The muxer changes after any fragment, and again some fragments later."""
    hops = cut + again + 3
    levels = (np.arange(hops * hop) * 16 % 256).astype(np.uint8)
    count = len(levels) * SAMPLES_PER_FRAME + extra
    pcm = (0.5 * np.sin(2 * np.pi * 440 * np.arange(count) / SAMPLE_RATE)).astype(np.float32)
    muxer = FragmentedMP4Muxer(64, 64, FPS)
    init, parts = muxer.init_segment(), []
    for n in range(hops):
        if n in (cut, cut + again):
            muxer = FragmentedMP4Muxer(64, 64, FPS, state=muxer.state())
            assert muxer.init_segment() == init
        sound = slice(n * hop * SAMPLES_PER_FRAME, (n + 1) * hop * SAMPLES_PER_FRAME)
        parts.append(muxer.add(grey(levels[n * hop : (n + 1) * hop], 64), pcm[sound]))
    broken = probe(init + b"".join(parts) + muxer.close())
    whole = probe(mux(levels, pcm, hop))
    assert broken.times_s == whole.times_s
    assert np.abs(broken.pictures - whole.pictures).max() < 2
    assert (broken.sound_s, broken.sound_start_s) == (whole.sound_s, 0)
    assert len(broken.sound) == len(whole.sound)
    settled = slice(1024, count - 1024)
    error = broken.sound[settled] - pcm[settled]
    # Nowhere more than the codec itself errs, over any frame's length.
    own = whole.sound[settled] - pcm[settled]
    blocks = len(error) // 512 * 512
    if blocks:
        loudest = [np.sqrt((e[:blocks].reshape(-1, 512) ** 2).mean(1)).max() for e in (error, own)]
        assert loudest[0] < 1.5 * loudest[1] + 0.01

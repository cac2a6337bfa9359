"""Programs that others use read the marks of a video, also after FFmpeg has copied it."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from media.marks import AI_GENERATED, COMMENT, tool_version
from server.api import protocol

FPS, DAY = 25, date(2026, 8, 2)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def video(frames: int = 30) -> tuple[bytes, bytes]:
    """The init segment and the whole of a small video."""
    muxer = FragmentedMP4Muxer(64, 64, FPS, created=DAY)
    pcm = np.zeros(frames * SAMPLE_RATE // FPS, np.float32)
    picture = np.full((64, 64, 3), 90, np.uint8)
    return muxer.init_segment(), muxer.init_segment() + b"".join(
        [muxer.add([picture] * frames, pcm), muxer.close()]
    )


def exiftool(*files: Path, flags: tuple[str, ...] = ()) -> list[dict[str, str]]:
    command = ["exiftool", "-json", "-G1", *flags, *map(str, files)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@needs("exiftool")
def test_exiftool_parses_the_source_type_of_init_segment_and_file(tmp_path: Path) -> None:
    paths = [tmp_path / "init.mp4", tmp_path / "whole.mp4"]
    for path, blob in zip(paths, video(), strict=True):
        path.write_bytes(blob)
    for seen in exiftool(*paths):
        assert seen["XMP-iptcExt:DigitalSourceType"] == AI_GENERATED
        assert seen["XMP-xmp:CreatorTool"] == f"fada {tool_version()}"
        assert seen["XMP-xmp:CreateDate"] == "2026:08:02"
        assert seen["ItemList:Comment"] == COMMENT


@needs("ffmpeg")
@needs("exiftool")
def test_marks_survive_a_copy_by_ffmpeg(tmp_path: Path) -> None:
    """The comment in any container; the XMP of keyframes even where metadata is stripped."""
    source, copied, stripped = (tmp_path / f"{name}.mp4" for name in ("a", "copied", "stripped"))
    source.write_bytes(video()[1])
    copy = ["ffmpeg", "-v", "error", "-i", source, "-c", "copy"]
    subprocess.run([*copy, copied, "-c", "copy", "-map_metadata", "-1", stripped], check=True)
    first, second = exiftool(copied, stripped, flags=("-scanForXMP",))
    assert first["ItemList:Comment"] == COMMENT and "ItemList:Comment" not in second
    for seen in (first, second):
        assert seen["XMP-iptcExt:DigitalSourceType"] == AI_GENERATED
        assert seen["XMP-xmp:CreatorTool"] == f"fada {tool_version()}"


def test_every_keyframe_is_marked() -> None:
    assert video(30)[1].count(b'id="W5M0MpCehiHzreSzNTczkc9d"') == 1 + 1
    muxer = FragmentedMP4Muxer(64, 64, FPS)
    pcm = np.zeros(8 * SAMPLE_RATE // FPS, np.float32)
    parts = [muxer.add([np.zeros((64, 64, 3), np.uint8)] * 8, pcm) for _ in range(7)]
    assert [AI_GENERATED.encode() in part for part in parts] == [k % 3 == 0 for k in range(7)]


def test_the_api_names_what_the_videos_name() -> None:
    assert protocol.AI_GENERATED == AI_GENERATED

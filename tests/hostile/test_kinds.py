"""Sounds and pictures that real users send, one of each kind, through `POST /animate`.

`tests/media/test_sounds.py` has hundreds of them, decoded without a service.
"""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.media.sounds import LAYOUTS, SECONDS, concatenated, encoded
from tests.server.media_files import noise_picture, picture
from tests.server.media_probe import probe
from tests.server.rest_client import animate
from tests.server.service import Service

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg makes the sounds")

_SILENCE = "-f lavfi -t 3 -i anullsrc=r=44100:cl=mono"
_VIDEO = "-f lavfi -i testsrc=s=64x64:r=10:d=9"
_PIECES = ("-t 1", "-ss 1 -t 1 -ar 24000", "-ss 2 -t 1 -ac 2")
_PAUSE = "-af aselect='not(between(t,1,1.999))' -fps_mode passthrough -c:a flac .mkv"
_BARE = "-write_xing 0 -id3v2_version 0 .mp3"
_TAG = "T" * 24
_FILES = {
    "wav": "-c:a pcm_s16le .wav",
    "flac": "-c:a flac .flac",
    "mp3": "-ar 44100 -c:a libmp3lame .mp3",
    "webm": "-c:a libopus .webm",
    "m4a": f"-metadata title={_TAG} -ar 44100 -c:a aac .m4a",
    "mov": "-c:a pcm_s16be .mov",
    "ogg flac": "-c:a flac .ogg",
    "speex": "-ar 8000 -c:a libspeex .spx",
    "opposite phases": f"-af {LAYOUTS['opposite']} -c:a flac .flac",
    "centre of 5.1": f"-af {LAYOUTS['5.1 centre']} -c:a flac .flac",
    "stereo": f"-af {LAYOUTS['stereo']} -c:a flac .flac",
    "a pause": _PAUSE,
    "a long video": "-map 2:v -map 0:a -c:v libx264 -c:a aac .mp4",
    "second track by default": "-map 1:a -map 0:a -disposition:0 0 -disposition:1 default "
    "-c:a aac -ar 44100 -shortest .mp4",
    **{
        f"{kind} piece {n}": f"{piece} {text}"
        for kind, text in (("mp3", f"-c:a libmp3lame {_BARE}"), ("flac", "-c:a flac .flac"))
        for n, piece in enumerate(_PIECES)
    },
}


_AS_MADE = (
    "ogg flac", "speex", "a long video", "opposite phases", "centre of 5.1", "stereo", "a pause",
    "second track by default",
)  # fmt: skip


@pytest.fixture(scope="module")
def sounds() -> dict[str, bytes]:
    """Three seconds of speech each."""
    made = encoded(_FILES, extra=f"{_SILENCE} {_VIDEO}")
    wav, flac, mp3, webm, m4a = (made[name] for name in ("wav", "flac", "mp3", "webm", "m4a"))
    data = wav.index(b"data") + 4
    count = int.from_bytes(flac[18:26], "big") >> 36 << 36  # STREAMINFO's, of 36 bits, unknown
    hour = webm.index(b"\x44\x89\x88") + 3
    tag = 10 + mp3[9]
    flipped = {name: bytearray(blob) for name, blob in (("flac", flac), ("m4a", m4a))}
    for blob in flipped.values():
        blob[len(blob) // 3] ^= 0xFF
    pieces = {kind: [made[f"{kind} piece {n}"] for n in range(3)] for kind in ("mp3", "flac")}
    return {
        "wav": wav,
        **{name: made[name] for name in _AS_MADE},
        "mp3 joined": b"".join(pieces["mp3"]),
        "flac joined": b"".join(pieces["flac"]),
        "mp3 that changes": concatenated(pieces["mp3"], ".mkv"),
        "flac of unknown length": flac[:18] + count.to_bytes(8, "big") + flac[26:],
        "wav of no bytes": wav[:data] + bytes(4) + wav[data + 4 :],
        "wav of few bytes": wav[:data] + struct.pack("<I", 10_240) + wav[data + 4 :],
        "webm of an hour": webm[:hour] + struct.pack(">d", 3.6e6) + webm[hour + 8 :],
        "mp3 with zeros after its tag": mp3[:tag] + bytes(5_000) + mp3[tag:],
        "mp3 from within a frame": mp3[tag + 600 :],
        "mov without ftyp": made["mov"].replace(b"ftyp", b"wide", 1),
        "m4a with a tag in Latin-1": m4a.replace(_TAG.encode(), b"Zo\xeb".ljust(24)),
        "flac with a wrong byte": bytes(flipped["flac"]),
        "m4a with a wrong byte": bytes(flipped["m4a"]),
        "flac cut": flac[: len(flac) * 2 // 3],
    }


LENGTHS = {"flac cut": 2.0}
WITHIN_S = {"flac cut": 0.35, "mp3 joined": 0.25, "mp3 that changes": 0.25}  # filled-up frames
DAMAGED = ("flac cut", "flac with a wrong byte", "m4a with a wrong byte")


def test_every_kind_of_sound_keeps_its_length_and_level(
    service: Service, sounds: dict[str, bytes]
) -> None:
    faults, plain, workers = [], 0.0, service.workers()
    with service.client() as client:
        for name, blob in sounds.items():
            answer = animate(client, audio=blob)
            if answer.status_code != 200:
                faults.append(f"{name}: {answer.text}")
                continue
            video = probe(answer.content)
            level = 10 * np.log10(np.square(video.sound, dtype=np.float64).mean())
            plain = plain or level  # the first is the WAV
            off = level - plain
            expected_s = LENGTHS.get(name, SECONDS)
            if abs(video.video_s - expected_s) > WITHIN_S.get(name, 0.13):
                faults.append(f"{name}: {video.video_s} s")
            if name != "a pause" and name not in DAMAGED and abs(off) > 1.5:
                faults.append(f"{name}: {off:+.1f} dB")
    assert not faults and service.workers() == workers


def pictures() -> Iterator[tuple[str, bytes]]:
    """Pictures that browsers show."""
    png, jpeg = picture(), picture(kind="JPEG")
    comment = b"\0\0\0\x08tEXta\0damage" + b"\0\0\0\0"
    yield "jpeg without its end", jpeg[:-2]
    yield "png with a broken comment", png[:33] + comment + png[33:]
    yield "png without its end", png[:-12]
    yield "avif", picture(kind="AVIF")
    yield "grey of 16 bits", encoded_picture(Image.new("I;16", (300, 300), 9000), "PNG")
    yield "palette", encoded_picture(Image.new("P", (300, 300)), "PNG")
    yield "transparent webp", encoded_picture(Image.new("RGBA", (5000, 200)), "WEBP")
    yield "png of noise", noise_picture(300)


def encoded_picture(shown: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    shown.save(file, kind)
    return file.getvalue()


def test_every_kind_of_picture_is_taken(service: Service) -> None:
    with service.client() as client:
        answers = {
            name: client.post("/avatars", files={"portrait": ("p", blob)})
            for name, blob in pictures()
        }
    assert not {name: answer.text for name, answer in answers.items() if not answer.is_success}

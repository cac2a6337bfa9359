"""Sounds with lying headers, several tracks, pauses, tags and other surprises."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from tests.media.sounds import SECONDS, SPEECH, Sound, encoded

_SILENT = "-f lavfi -t 3 -i anullsrc=r=44100:cl=mono"
_COVER = "-f lavfi -i color=red:s=64x64:r=1:d=1"
_VIDEO = "-f lavfi -i testsrc=s=64x64:r=10:d=9"


def odd_sounds() -> Iterator[Sound]:
    yield from _wav_headers()
    yield from _other_headers()
    yield from _mp3_headers()
    yield from _tags()
    yield from _tracks()
    yield from _pauses()
    yield from _scales()


def _le32(value: int) -> bytes:
    return struct.pack("<I", value)


def _wav_headers() -> Iterator[Sound]:
    made = encoded(
        {
            "wav": "-c:a pcm_s16le .wav",
            "rf64": "-c:a pcm_s16le -rf64 always .wav",
            "float": "-c:a pcm_f32le .wav",
            "mp3": "-c:a libmp3lame -ar 44100 .wav",
        }
    )
    for name, wav in made.items():
        at = wav.index(b"data") + 4
        for size in (0, 10_240, 0x7FFFFFFF, 0xFFFFFFFF):
            yield Sound(f"{name}, data of {size} bytes", wav[:at] + _le32(size) + wav[at + 4 :])
        yield Sound(f"{name}, RIFF of 0 bytes", wav[:4] + bytes(4) + wav[8:])
        yield Sound(f"{name}, RIFF of 100 bytes", wav[:4] + _le32(100) + wav[8:])
    wav = made["wav"]
    at = wav.index(b"data") + 4
    info = b"LIST" + _le32(26) + b"INFOINAM" + _le32(14) + b"M\xfcller, Zo\xeb\0\0\0"
    loud = np.random.default_rng(0).bytes(40_000).replace(b"RIFF", b"riff")
    yield Sound("wav with chunks before", wav[:12] + info + wav[12:])
    yield Sound("wav with chunks after", wav + info + b"bext" + _le32(40_000) + loud)
    yield Sound("wav with zeros after", wav + bytes(9_000))
    yield Sound("wav with a tag after", wav + b"TAG" + b"a" * 125)
    yield Sound("wav with a tag before", b"ID3\x04\0\0\0\0\x02\x05" + b"x" * 261 + wav)
    unknown = wav[:4] + _le32(0xFFFFFFFF) + wav[8:at] + _le32(0xFFFFFFFF) + wav[at + 4 :]
    half = at + 4 + len(wav[at + 4 :]) // 4 * 2
    second = wav[:at] + _le32(0) + wav[half:]
    yield Sound("wav joined, sizes unknown", unknown[:half] + second)
    yield Sound("wav joined, first size of both", wav[:half] + second)


def _other_headers() -> Iterator[Sound]:
    made = encoded(
        {
            "flac": "-c:a flac .flac",
            "webm": "-c:a libopus .webm",
            "mp4": "-c:a aac -ar 44100 .mp4",
            "mov": "-c:a pcm_s16be .mov",
            "aiff": "-c:a pcm_s16be .aiff",
            "au": "-c:a pcm_s16be .au",
            "caf": "-c:a pcm_s16be .caf",
        }
    )
    flac = made["flac"]
    for count in (0, 1_600, 48_000 * 3600, (1 << 36) - 1):  # STREAMINFO's samples, 36 bits
        word = int.from_bytes(flac[18:26], "big") >> 36 << 36 | count
        yield Sound(f"flac of {count} samples", flac[:18] + word.to_bytes(8, "big") + flac[26:])
    webm = made["webm"]
    at = webm.index(b"\x44\x89\x88") + 3
    for milliseconds in (10.0, 3.6e7):
        changed = webm[:at] + struct.pack(">d", milliseconds) + webm[at + 8 :]
        yield Sound(f"webm of {milliseconds:g} ms", changed)
    for kind in ("mp4", "mov"):
        blob = made[kind]
        for box, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
            for factor in (0, 1000):
                at = blob.index(box) + offset
                (length,) = struct.unpack_from(">I", blob, at)
                lie = struct.pack(">I", min(length * factor, 0x7FFFFFFF))
                yield Sound(f"{kind}, {box.decode()} × {factor}", blob[:at] + lie + blob[at + 4 :])
    # As before 2004: `ftyp` gives its place to a `wide` of the same length.
    yield Sound("quicktime without ftyp", made["mov"].replace(b"ftyp", b"wide", 1))
    au, aiff = made["au"], made["aiff"]
    yield Sound("au of unknown size", au[:8] + b"\xff" * 4 + au[12:])
    at = aiff.index(b"SSND") + 4
    yield Sound("aiff of 0 bytes", aiff[:4] + bytes(4) + aiff[8:at] + bytes(4) + aiff[at + 4 :])
    caf = made["caf"]
    at = caf.index(b"data", 8) + 4
    yield Sound("caf of unknown size", caf[:at] + b"\xff" * 8 + caf[at + 8 :])


def _mp3_headers() -> Iterator[Sound]:
    made = encoded(
        {
            "mp3": "-ar 44100 -c:a libmp3lame .mp3",
            "bare": "-ar 44100 -c:a libmp3lame -write_xing 0 -id3v2_version 0 .mp3",
            "adts": "-ar 44100 -c:a aac .aac",
        }
    )
    mp3, bare, adts = made["mp3"], made["bare"], made["adts"]
    at = mp3.index(b"Info") + 8
    for frames in (1, 10, 100_000):
        changed = mp3[:at] + struct.pack(">I", frames) + mp3[at + 4 :]
        yield Sound(f"mp3 of {frames} frames", changed, within_s=0.11)
    tag, rest = mp3[: 10 + mp3[9]], mp3[10 + mp3[9] :]
    yield Sound("mp3, zeros after tag", tag + bytes(5_000) + rest)
    yield Sound("mp3 with a tag after", mp3 + b"APETAGEX" + bytes(200) + b"TAG" + b"a" * 125)
    cover = b"ID3\x03\0\0\0\0\x7f\x7f" + np.random.default_rng(0).bytes(16_383)
    yield Sound("mp3 with a large tag", cover + rest)
    yield Sound("mp3 with two tags", cover + tag + rest)
    for name, blob in (("mp3", bare), ("adts", adts)):
        yield Sound(f"{name} from within a frame", blob[150:], within_s=0.12)
        yield Sound(
            f"{name} from its middle", blob[len(blob) // 3 :], 2.0, within_s=0.2, begin_s=1.0
        )
    yield Sound("mp3 with noise in it", bare[:9000] + b"\0\x12" * 2500 + bare[9000:], within_s=0.12)


def _tags() -> Iterator[Sound]:
    long = "X" * 24
    made = encoded(
        {
            ending: f"-metadata title={long} -metadata artist={long} -metadata:s:a:0 title={long} "
            f"-c:a {codec} .{ending}"
            for ending, codec in (
                ("m4a", "aac"), ("mov", "aac"), ("webm", "libopus"), ("mkv", "flac"),
                ("ogg", "libvorbis"), ("opus", "libopus"), ("flac", "flac"), ("mp3", "libmp3lame"),
                ("wav", "pcm_s16le"), ("aiff", "pcm_s16be"), ("caf", "pcm_s16le"),
            )
        }
    )  # fmt: skip
    texts = {
        "latin-1": "Zoë Müller größt überall".encode("latin-1")[:24],
        "utf-16": "Zoë Müller 12".encode("utf-16")[:24],
        "zeros": bytes(24),
    }
    for ending, blob in made.items():
        for name, text in texts.items():
            within_s = 0.1 if ending == "m4a" else 0.05
            changed = blob.replace(long.encode(), text.ljust(24))
            yield Sound(f"{ending} with tags in {name}", changed, within_s=within_s)


def _tracks() -> Iterator[Sound]:
    aac = "-c:a aac -ar 44100 -shortest"
    first, last = (
        "-disposition:0 default -disposition:1 0",
        "-disposition:0 0 -disposition:1 default",
    )
    made = encoded(
        {
            "silent first": f"-map 1:a -map 0:a {aac} .mp4",
            "silent first, mkv": f"-map 1:a -map 0:a {aac} .mkv",
            "default last": f"-map 1:a -map 0:a {last} {aac} .mp4",
            "silent default": f"-map 1:a -map 0:a {first} {aac} .mkv",
            "silent last": f"-map 0:a -map 1:a {aac} .webm".replace("aac -ar 44100", "libopus"),
        },
        extra=_SILENT,
    )
    pictures = encoded(
        {
            "m4a cover": "-map 0:a -map 1:v -c:a aac -c:v png -disposition:v attached_pic .m4a",
            "mp3 cover": "-map 0:a -map 1:v -c:a libmp3lame -c:v png .mp3",
            "flac cover": "-map 0:a -map 1:v -c:a flac -c:v png -disposition:v attached_pic .flac",
        },
        extra=_COVER,
    )
    videos = encoded(
        {
            "mp4 video first": "-map 1:v -map 0:a -c:v libx264 -c:a aac .mp4",
            "mov video first": "-map 1:v -map 0:a -c:v mjpeg -c:a pcm_s16le .mov",
            "webm video": "-map 1:v -map 0:a -c:v libvpx -c:a libopus .webm",
            "mkv video": "-map 1:v -map 0:a -c:v libx264 -c:a libmp3lame -ar 44100 .mkv",
        },
        extra=_VIDEO,
    )
    for name, blob in {**made, **pictures, **videos}.items():
        yield Sound(name, blob, within_s=0.1)


def _pauses() -> Iterator[Sound]:
    """A second of it is not there, only the time that it took."""
    gap = "-af aselect='not(between(t,1,1.999))' -fps_mode passthrough"
    kinds = {
        "mp4": "-c:a aac -ar 48000 .mp4",
        "mkv": "-c:a flac .mkv",
        "mkv pcm": "-c:a pcm_s16le .mkv",
        "webm": "-c:a libvorbis .webm",
    }
    made = encoded({name: f"{gap} {text}" for name, text in kinds.items()})
    late = encoded({f"{name}, late": f"-output_ts_offset 7 {text}" for name, text in kinds.items()})
    for name, blob in made.items():
        yield Sound(f"{name} with a pause", blob, within_s=0.1, paused=True)
    for name, blob in late.items():
        yield Sound(name, blob, within_s=0.1)


def _scales() -> Iterator[Sound]:
    speech = np.frombuffer(SPEECH.read_bytes()[44:], "<i2")[: round(SECONDS * 16_000)]
    for bits, kind in ((15, "f4"), (23, "f4"), (31, "f8")):
        samples = speech.astype(np.float64) * 2.0 ** (bits - 15)
        data = samples.astype(f"<{kind}").tobytes()
        size = np.dtype(kind).itemsize
        head = struct.pack(
            "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, 16_000,
            16_000 * size, size, 8 * size, b"data", len(data),
        )  # fmt: skip
        yield Sound(f"float of {bits + 1} bits", head + data)

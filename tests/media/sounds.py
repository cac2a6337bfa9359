"""Sounds as people have them: three seconds of speech in many files, made by Debian's ffmpeg.

Each family is made by one ffmpeg process and by changes to its bytes. Every file holds the same
speech, so each must decode to the same length and level.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

SECONDS = 3.0
SPEECH = Path(__file__).parents[2] / "docs/examples/speech.wav"

# Channels of a layout, each as a multiple of the speech.
LAYOUTS = {
    "mono": "pan=mono|c0=c0",
    "stereo": "pan=stereo|c0=c0|c1=c0",
    "left only": "pan=stereo|c0=c0",
    "opposite": "pan=stereo|c0=c0|c1=-0.9*c0",
    "offset": "pan=stereo|c0=c0|c1=0.4*c0",
    "quad": "pan=quad|c0=c0|c1=c0|c2=0.3*c0|c3=0.3*c0",
    "5.1 centre": "pan=5.1|c2=c0",
    "5.1 front": "pan=5.1|c0=c0|c1=c0|c4=0.2*c0|c5=0.2*c0",
    "7.1 centre": "pan=7.1|c2=c0",
}


@dataclass(frozen=True)
class Sound:
    """``blob`` must decode to ``seconds`` within ``within_s``, and the speech's level within 1 dB.

    It begins at ``begin_s`` of the speech. ``paused``: from 1 to 2 s. ``damaged``: only its length
    counts.
    """

    name: str
    blob: bytes
    seconds: float = SECONDS
    within_s: float = 0.05
    begin_s: float = 0.0
    paused: bool = False
    damaged: bool = False


def encoded(outputs: Mapping[str, str], *, extra: str = "") -> dict[str, bytes]:
    """Files by name, made by one ffmpeg process; each value is arguments and an ending.

    Such as ``-c:a aac -ar 44100 .m4a``. ``extra``: a second input.
    """
    command = f"ffmpeg -nostdin -v error -y -t {SECONDS} -i {SPEECH} {extra}".split()
    with TemporaryDirectory() as folder:
        files = {}
        for number, (name, text) in enumerate(outputs.items()):
            *arguments, ending = text.split()
            files[name] = Path(folder, f"{number}{ending}")
            command += [*arguments, str(files[name])]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=120)
        return {name: file.read_bytes() for name, file in files.items()}


def _matrix(
    codecs: Mapping[str, str], rates: tuple[int, ...], layouts: tuple[str, ...]
) -> dict[str, str]:
    """Each codec with each rate and each layout, but not with all pairs of them."""
    outputs = {}
    for name, arguments in codecs.items():
        pairs = {(rate, layouts[0]) for rate in rates} | {(rates[-1], layout) for layout in layouts}
        for rate, layout in sorted(pairs):
            *before, ending = arguments.split()
            pan = LAYOUTS[layout].replace(" ", "")
            outputs[f"{name}, {rate} Hz, {layout}"] = (
                f"-af {pan} -ar {rate} {' '.join(before)} {ending}"
            )
    return outputs


PCM = {
    **{f"wav {codec}": f"-c:a {codec} .wav" for codec in
       ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw",
        "pcm_mulaw")},
    "rf64": "-c:a pcm_s24le -rf64 always .wav",
    "w64": "-c:a pcm_s16le .w64",
    "w64 float": "-c:a pcm_f32le .w64",
    "aiff": "-c:a pcm_s16be .aiff",
    "aiff 24": "-c:a pcm_s24be .aiff",
    "aifc float": "-c:a pcm_f32be .aiff",
    "au": "-c:a pcm_s16be .au",
    "au mulaw": "-c:a pcm_mulaw .au",
    "au float": "-c:a pcm_f32be .au",
    "caf": "-c:a pcm_s16le .caf",
    "caf 24": "-c:a pcm_s24be .caf",
    "mov": "-c:a pcm_s16be .mov",
    "mov float": "-c:a pcm_f32le .mov",
    "mkv pcm": "-c:a pcm_s24le .mkv",
    "mkv float": "-c:a pcm_f32le .mkv",
}  # fmt: skip
MONO_PCM = {
    "wav ima": "-c:a adpcm_ima_wav .wav",
    "wav ms": "-c:a adpcm_ms .wav",
    "mov ima": "-c:a adpcm_ima_qt .mov",
}
LOSSLESS = {
    "flac": "-c:a flac .flac",
    "flac 24": "-c:a flac -sample_fmt s32 .flac",
    "ogg flac": "-c:a flac .ogg",
    "mkv flac": "-c:a flac .mkv",
    "mp4 flac": "-c:a flac -strict -2 .mp4",
    "m4a alac": "-c:a alac .m4a",
    "caf alac": "-c:a alac .caf",
}
LOSSY_PAIRS = {
    "mp3": "-c:a libmp3lame .mp3",
    "mp2": "-c:a mp2 -b:a 128k .mp2",
    "mp3 in wav": "-c:a libmp3lame .wav",
    "mp3 in mp4": "-c:a libmp3lame .mp4",
    "mp3 in mkv": "-c:a libmp3lame .mkv",
    "mp3 vbr": "-c:a libmp3lame -q:a 4 .mp3",
    "mp3 without xing": "-c:a libmp3lame -write_xing 0 -id3v2_version 0 .mp3",
}
LOSSY = {
    "m4a": "-c:a aac .m4a",
    "mp4 in fragments": "-c:a aac -movflags +frag_keyframe+empty_moov .mp4",
    "3gp": "-c:a aac .3gp",
    "adts": "-c:a aac .aac",
    "mkv aac": "-c:a aac .mkv",
    "ogg vorbis": "-c:a libvorbis .ogg",
    "webm vorbis": "-c:a libvorbis .webm",
}
OPUS = {
    "ogg opus": "-c:a libopus -mapping_family {} .opus",
    "webm opus": "-c:a libopus -mapping_family {} .webm",
    "mp4 opus": "-c:a libopus -mapping_family {} -strict -2 .mp4",
}
TELEPHONE = {
    "ogg speex": "-c:a libspeex .spx",
    "wav gsm": "-c:a libgsm_ms .wav",
}
AC3 = {
    "mp4 ac3": "-c:a ac3 .mp4",
    "mkv ac3": "-c:a ac3 .mkv",
    "mp4 eac3": "-c:a eac3 .mp4",
}


# Their last frame is filled up, and nothing in the file says how far.
_FILLED = (*MONO_PCM, "mp3 in", "mp3 without xing", "mp4 in fragments", "adts", "mkv aac")


def plain(family: str) -> list[Sound]:
    """One of `families`: whole files of every container, codec, rate and layout."""
    made = encoded(dict(families())[family])
    return [
        Sound(name, blob, within_s=0.1 if name.startswith(_FILLED) else 0.05)
        for name, blob in made.items()
    ]


def families() -> Iterator[tuple[str, dict[str, str]]]:
    """What each ffmpeg process makes."""
    yield "pcm", _matrix(PCM, (44_100, 8_000), ("stereo", "opposite", "5.1 centre"))
    yield "adpcm", _matrix(MONO_PCM, (22_050, 8_000), ("mono", "stereo"))
    yield "lossless", _matrix(LOSSLESS, (48_000, 16_000), ("mono", "offset", "5.1 front"))
    yield "mpeg", _matrix(LOSSY_PAIRS, (16_000, 44_100, 22_050), ("mono", "opposite"))
    yield "lossy", _matrix(LOSSY, (44_100, 16_000), ("stereo", "opposite", "5.1 centre"))
    yield (
        "layouts",
        _matrix({"flac": LOSSLESS["flac"], "wav": PCM["wav pcm_f32le"]}, (32_000,), tuple(LAYOUTS)),
    )
    yield (
        "opus",
        {
            name: arguments
            for family, layouts in (
                (0, ("left only", "opposite")),
                (1, ("5.1 centre", "7.1 centre")),
            )
            for name, arguments in _matrix(
                {key: text.format(family) for key, text in OPUS.items()}, (48_000,), layouts
            ).items()
        },
    )
    yield "ac3", _matrix(AC3, (48_000, 32_000), ("mono", "stereo", "5.1 centre"))
    yield (
        "telephone",
        {f"{name}, 8 kHz": f"-ac 1 -ar 8000 {text}" for name, text in TELEPHONE.items()},
    )


# Files of a second each that are joined; rates, channels and settings change between them.
_CUT = ("-ss 0 -t 1", "-ss 1 -t 1", "-ss 2 -t 1")
_STEREO = f"-af {LAYOUTS['stereo']}"
_BARE = "-write_xing 0 -id3v2_version 0 .mp3"
_VARIANTS = ("", "-ar 44100", _STEREO)
JOINED = {
    "wav": (
        "-c:a pcm_s16le .wav",
        "-ar 44100 -c:a pcm_s24le .wav",
        f"{_STEREO} -c:a pcm_f32le .wav",
    ),
    "wav of one kind": ("-c:a pcm_s16le .wav",) * 3,
    "flac": tuple(f"{variant} -c:a flac .flac" for variant in _VARIANTS),
    "mp3": tuple(f"{variant} -c:a libmp3lame .mp3" for variant in _VARIANTS),
    "mp3 of one kind": ("-ar 24000 -c:a libmp3lame .mp3",) * 3,
    "mp3 without headers": (f"-ar 24000 {_BARE}", f"-ar 44100 {_BARE}", f"{_STEREO} {_BARE}"),
    "ogg vorbis": tuple(f"{variant} -c:a libvorbis .ogg" for variant in _VARIANTS),
    "ogg opus": tuple(f"{variant} -c:a libopus .opus" for variant in _VARIANTS[::2] * 2)[:3],
    "ogg of all kinds": ("-c:a libvorbis .ogg", "-c:a libopus .ogg", "-c:a flac .ogg"),
    "adts": tuple(f"{variant} -c:a aac .aac" for variant in _VARIANTS),
    "m4a": ("-c:a aac .m4a", "-c:a aac -ar 44100 .m4a", "-c:a alac .m4a"),
    "webm": ("-c:a libopus .webm", "-c:a libvorbis .webm", f"{_STEREO} -c:a libopus .webm"),
}


def joined() -> list[Sound]:
    """Several files in one."""
    pieces = encoded(
        {
            f"{name} {number}": f"{cut} {text}"
            for name, texts in JOINED.items()
            for number, (cut, text) in enumerate(zip(_CUT, texts, strict=True))
        }
    )
    sounds = {name: [pieces[f"{name} {number}"] for number in range(3)] for name in JOINED}
    padded = {"mp3 without headers": 0.25, "adts": 0.25, "m4a": 0.1}  # each piece, by its encoder
    return [
        Sound(f"{name} joined", b"".join(three), within_s=padded.get(name, 0.05))
        for name, three in sounds.items()
    ]


def concatenated(pieces: list[bytes], ending: str) -> bytes:
    """Their packets in one track, unchanged."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, str(number)) for number in range(len(pieces))]
        for file, piece in zip(files, pieces, strict=True):
            file.write_bytes(piece)
        names, out = Path(folder, "list"), Path(folder, f"out{ending}")
        names.write_text("".join(f"file {file}\n" for file in files))
        command = f"ffmpeg -nostdin -v error -f concat -safe 0 -i {names} -c copy {out}"
        subprocess.run(command.split(), check=True, timeout=60)
        return out.read_bytes()


def changing() -> Iterator[Sound]:
    """Rate and channels change within a track."""
    cuts = dict(zip(_CUT, ("", "-ar 24000", _STEREO), strict=True))
    kinds = {"mp3": _BARE, "opus": "-c:a libopus .opus", "flac": "-c:a flac .flac"}
    # Encoders fill each piece up; of FLAC, ffmpeg writes wrong times, and so pauses.
    within_s = {"mp3": 0.25, "opus": 0.05, "flac": 1.0}
    for name, text in kinds.items():
        pieces = encoded({cut: f"{cut} {variant} {text}" for cut, variant in cuts.items()})
        blob = concatenated(list(pieces.values()), ".mkv")
        yield Sound(f"{name} that changes", blob, within_s=within_s[name])


BASES = {
    "wav": "-c:a pcm_s16le .wav",
    "wav float": "-c:a pcm_f32le .wav",
    "aiff": "-c:a pcm_s16be .aiff",
    "au": "-c:a pcm_s16be .au",
    "caf": "-c:a pcm_s16le .caf",
    "w64": "-c:a pcm_s16le .w64",
    "flac": "-c:a flac .flac",
    "mp3": "-ar 44100 -c:a libmp3lame .mp3",
    "ogg": "-ar 44100 -c:a libvorbis .ogg",
    "opus": "-c:a libopus .opus",
    "m4a": "-ar 44100 -c:a aac .m4a",
    "alac": "-c:a alac .m4a",
    "adts": "-ar 44100 -c:a aac .aac",
    "mov": "-c:a pcm_s16le .mov",
    "webm": "-c:a libopus .webm",
    "mkv": "-ar 44100 -c:a libvorbis .mkv",
    "mkv flac": "-c:a flac .mkv",
    "mp4 in fragments": "-c:a aac -movflags +frag_keyframe+empty_moov .mp4",
}


def flipped() -> Iterator[Sound]:
    """One wrong byte in the middle of the sound, at several places: at most a short gap."""
    for name, blob in encoded(BASES).items():
        for part in (3, 6):
            changed = bytearray(blob)
            changed[len(blob) * part // 9] ^= 0xFF
            title = f"{name}, byte {part}/9 flipped"
            yield Sound(title, bytes(changed), within_s=0.13, damaged=name == "alac")


def cut() -> Iterator[Sound]:
    """Only the first two thirds; MP4 keeps its index at the end."""
    for name, blob in encoded(BASES).items():
        if name not in ("m4a", "alac", "mov"):
            yield Sound(f"{name} cut", blob[: len(blob) * 2 // 3], 2.0, within_s=0.35)

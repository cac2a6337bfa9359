"""Feed both decoders damaged files: each must be decoded, or refused with a reason.

    python -m tests.hostile.fuzz --count 10000

A crash ends the process, less than a hundred files after the last seed that was printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np

from media.decode import decode_audio
from media.errors import MediaError
from model.portrait.image import PictureError, load_picture
from tests.media.sounds import encoded
from tests.server.media_files import picture

SOUNDS = {
    "wav": "-c:a pcm_s16le .wav",
    "wav float": "-c:a pcm_f32le .wav",
    "wav adpcm": "-c:a adpcm_ms .wav",
    "wav ima": "-c:a adpcm_ima_wav .wav",
    "wav g726": "-ar 8000 -c:a g726 .wav",
    "rf64": "-c:a pcm_s24le -rf64 always .wav",
    "w64": "-c:a pcm_s16le .w64",
    "aiff": "-c:a pcm_s16be .aiff",
    "au": "-c:a pcm_mulaw .au",
    "caf": "-c:a alac .caf",
    "flac": "-c:a flac .flac",
    "flac, eight channels": "-af pan=7.1|c2=c0 -c:a flac .flac",
    "mp3": "-c:a libmp3lame .mp3",
    "mp2": "-c:a mp2 .mp2",
    "adts": "-c:a aac .aac",
    "ogg": "-c:a libvorbis .ogg",
    "opus": "-c:a libopus .opus",
    "speex": "-c:a libspeex .spx",
    "m4a": "-c:a aac .m4a",
    "alac": "-c:a alac .m4a",
    "fragments": "-c:a aac -movflags +frag_keyframe+empty_moov .mp4",
    "two tracks": "-map 0:a -map 0:a -c:a aac .mp4",
    "ac3": "-c:a ac3 .mp4",
    "mov": "-c:a pcm_s16le .mov",
    "webm": "-c:a libopus .webm",
    "mkv": "-c:a libvorbis .mkv",
    "mkv eac3": "-c:a eac3 .mkv",
    "mkv dts": "-ar 48000 -c:a dca -strict -2 .mkv",
    "mkv truehd": "-c:a truehd -strict -2 .mkv",
    "mkv wavpack": "-c:a wavpack .mkv",
}
_HEADER_BYTES = 600


def originals() -> dict[str, bytes]:
    """A small file of each kind."""
    sounds = encoded({name: f"-t 0.1 {text}" for name, text in SOUNDS.items()})
    pictures = {kind: picture(size=(24, 32), kind=kind) for kind in ("PNG", "JPEG", "WEBP")}
    return {**sounds, **pictures}


def mutated(kinds: Mapping[str, bytes], seed: int) -> tuple[str, bytes]:
    """A kind, and its file with wrong bytes, often in the header; perhaps cut or joined."""
    random = np.random.default_rng(seed)
    names = list(kinds)
    name = names[seed % len(names)]
    blob = bytearray(kinds[name])
    reach = min(len(blob), _HEADER_BYTES) if random.random() < 0.5 else len(blob)
    for at in random.integers(0, reach, random.integers(1, 20)):
        blob[at] = random.integers(0, 256)
    if random.random() < 0.1:
        start, end = sorted(random.integers(0, len(blob), 2))
        del blob[start:end]
    if random.random() < 0.1:
        blob += kinds[names[random.integers(len(names))]]
    if random.random() < 0.2:
        del blob[random.integers(1, len(blob) + 1) :]
    return name, bytes(blob)


def outcome(name: str, blob: bytes) -> str:
    """How decoding ends; anything but a reason is raised."""
    try:
        if name.isupper():
            load_picture(blob)
        else:
            for block in decode_audio(blob, 48_000, 60.0).blocks:
                if not np.isfinite(block.output).all():
                    raise ValueError("samples are not finite")
    except MediaError as error:
        return error.code
    except PictureError:
        return "unsupported_media"
    return "decoded"


def main() -> None:
    faulthandler.enable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="files")
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    options = parser.parse_args()
    kinds, outcomes, began_s = originals(), Counter[str](), time.monotonic()
    for seed in range(options.seed, options.seed + options.count):
        if seed % 100 == 0:
            print(f"\rseed {seed}", end="", flush=True)
        outcomes[outcome(*mutated(kinds, seed))] += 1
    print(f"\n{dict(outcomes)} in {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()

"""Which marks of which outputs are read by which tools: ``python bench/marks.py``.

Makes a small video, signs it as a test signer, copies it with FFmpeg, and asks each tool that is
installed. A tool that is missing has no column.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from media.marks import AI_GENERATED
from media.signing import load_credentials, sign
from media.verify import read_marks
from tests.media.certificates import write_signer

FPS, FRAMES = 25, 50
ROOT = Path(__file__).parents[1]
C2PA_RS = "import c2pa, sys; print(c2pa.Reader('video/mp4', open(sys.argv[1], 'rb')).json())"
ENCYPHER = "import encypher_c2pa as e, json, sys; print(json.dumps(e.verify(sys.argv[1])))"


def made() -> tuple[bytes, bytes]:
    """The init segment and the whole of two seconds of video."""
    muxer = FragmentedMP4Muxer(128, 128, FPS)
    pcm = np.zeros(SAMPLE_RATE // FPS, np.float32)
    parts = [muxer.add([np.full((128, 128, 3), 4 * k, np.uint8)], pcm) for k in range(FRAMES)]
    return muxer.init_segment(), muxer.init_segment() + b"".join(parts) + muxer.close()


def outputs(folder: Path) -> dict[str, Path]:
    init, video = made()
    signer = write_signer(folder)
    signed = sign(video, load_credentials(signer.certificates, signer.key))
    changed = bytearray(signed)
    changed[signed.index(b"mdat") + 100] ^= 1
    blobs = {
        "init segment": init,
        "sent while made: POST /animate, live": video,
        "kept or by fada animate, signed": signed,
        "the same, one bit of a frame flipped": bytes(changed),
    }
    found = {}
    for number, (name, blob) in enumerate(blobs.items()):
        found[name] = folder / f"{number}.mp4"
        found[name].write_bytes(blob)
    source = found["kept or by fada animate, signed"]
    for name, ending, flags in (
        ("ffmpeg -c copy, MP4", "mp4", ["-c", "copy"]),
        ("ffmpeg -c copy, Matroska", "mkv", ["-c", "copy"]),
        ("ffmpeg -c copy, MPEG-TS", "ts", ["-c", "copy"]),
        ("ffmpeg -c copy, metadata stripped", "mp4", ["-c", "copy", "-map_metadata", "-1"]),
        ("encoded again", "mp4", ["-c:a", "copy"]),
    ):
        found[name] = folder / f"{len(found)}.{ending}"
        run(["ffmpeg", "-v", "error", "-i", str(source), *flags, str(found[name])])
    return found


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def exiftool(*flags: str) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        text = run(["exiftool", "-json", "-G1", "-DigitalSourceType", *flags, str(path)])
        return "yes" if AI_GENERATED in text else "–"

    return read


def exiftool_comment(path: Path) -> str:
    return "yes" if AI_GENERATED in run(["exiftool", "-json", "-Comment", str(path)]) else "–"


def ffprobe_comment(path: Path) -> str:
    text = run(["ffprobe", "-v", "error", "-show_entries", "format_tags=comment", str(path)])
    return "yes" if AI_GENERATED in text else "–"


def verify(path: Path) -> str:
    with path.open("rb") as file:
        return read_marks(file).verdict


def c2pa_rs(path: Path) -> str:
    try:
        return str(json.loads(run([sys.executable, "-W", "ignore", "-c", C2PA_RS, str(path)]))
                   ["validation_state"].lower())  # fmt: skip
    except subprocess.CalledProcessError:
        return "–"


def encypher(path: Path) -> str:
    try:
        answer = json.loads(run([sys.executable, "-c", ENCYPHER, str(path)]))
    except subprocess.CalledProcessError:
        return "–"
    return str(answer["validation_state"]).lower() if answer["present"] else "–"


def tools() -> dict[str, Callable[[Path], str]]:
    columns: dict[str, tuple[bool, Callable[[Path], str]]] = {
        "ExifTool: XMP": (bool(shutil.which("exiftool")), exiftool()),
        "ExifTool -scanForXMP": (bool(shutil.which("exiftool")), exiftool("-scanForXMP")),
        "ExifTool: comment": (bool(shutil.which("exiftool")), exiftool_comment),
        "ffprobe: comment": (bool(shutil.which("ffprobe")), ffprobe_comment),
        "c2pa-rs": (find_spec("c2pa") is not None, c2pa_rs),
        "encypher-c2pa": (find_spec("encypher_c2pa") is not None, encypher),
        "fada verify": (True, verify),
    }
    return {name: read for name, (there, read) in columns.items() if there}


def main() -> None:
    if shutil.which("ffmpeg") is None:
        sys.exit("bench/marks.py needs ffmpeg")
    readers = tools()
    rows = [["output", *readers]]
    with tempfile.TemporaryDirectory() as directory:
        for name, path in outputs(Path(directory)).items():
            rows.append([name, *(read(path) for read in readers.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

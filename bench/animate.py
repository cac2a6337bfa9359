"""Latency and speed of `POST /animate`: first fragment, and whole video against real time.

Runs against a running service (`fada serve`) over HTTP:

    python bench/animate.py docs/examples/astronaut.jpg docs/examples/speech.wav

The clock starts when the last byte of the upload is handed to the socket. Every run uploads the
portrait again, so none of it is cached; the first run warms up and is not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.live.report import processor


@dataclass(frozen=True)
class Run:
    """Seconds from the end of the upload; ``media_s`` is the video's own length."""

    first_s: float
    whole_s: float
    media_s: float


def fragments(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The top-level boxes of an MP4, each as soon as it is complete."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 8 and len(buffer) >= (size := int.from_bytes(buffer[:4], "big")):
            yield buffer[:size]
            buffer = buffer[size:]


def run(client: httpx.Client, portrait: Path, audio: Path, *, size: int) -> Run:
    """One request. Raises ``RuntimeError`` with the service's answer if it refuses."""
    files = {
        "portrait": (portrait.name, portrait.read_bytes()),
        "audio": (audio.name, audio.read_bytes()),
    }
    form = httpx.Request("POST", "http://form", files=files, data={"size": str(size), "seed": "1"})
    sent_s = 0.0

    def upload() -> Iterator[bytes]:
        nonlocal sent_s
        body = form.read()
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]
        sent_s = time.perf_counter()

    headers = {name: form.headers[name] for name in ("content-type", "content-length")}
    with client.stream("POST", "/animate", content=upload(), headers=headers) as response:
        if response.status_code != 200:
            raise RuntimeError(response.read().decode())
        first_s = 0.0
        for box in fragments(response.iter_bytes()):
            if box[4:8] == b"mdat" and not first_s:
                first_s = time.perf_counter()
        whole_s = time.perf_counter()
        job = response.headers["x-job-id"]
    media_s = client.get(f"/jobs/{job}").json()["duration_s"]
    return Run(first_s - sent_s, whole_s - sent_s, media_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("portrait", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with httpx.Client(base_url=args.url, timeout=600.0) as client:
        run(client, args.portrait, args.audio, size=args.size)
        runs = [run(client, args.portrait, args.audio, size=args.size) for _ in range(args.runs)]
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, load {load:.1f}, {platform.system()}")
    print(f"{args.size} pixels, {runs[0].media_s:.2f} s of speech, medians of {args.runs}:")
    print(f"  first fragment  {1000 * statistics.median(r.first_s for r in runs):.0f} ms")
    factor = statistics.median(r.media_s / r.whole_s for r in runs)
    print(f"  whole video     {factor:.1f} times real time")


if __name__ == "__main__":
    main()

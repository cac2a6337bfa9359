"""CPU time and size of a frame with each encoder that works here: ``python bench/encoders.py``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from media.encoders import ENCODERS, Encoding, VideoEncoder

PORTRAIT = Path(__file__).parents[1] / "docs" / "examples" / "presenter.jpg"
FRAMES, KEY_INTERVAL = 50, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="pixels [%(default)s]")
    size = parser.parse_args().size
    picture = np.asarray(Image.open(PORTRAIT).convert("RGB").resize((size, size)))
    for name in ENCODERS:
        try:
            encoder = VideoEncoder(size, size, 25, Encoding(name))
        except ValueError as error:
            print(f"{name:9} {error}")
            continue
        encoder.encode(picture, key=True)  # compiles, and sets up
        moved = [np.roll(picture, k % 5 - 2, axis=0) for k in range(5)]
        began_s, count = time.process_time(), 0
        for k in range(FRAMES):
            count += len(encoder.encode(moved[k % 5], key=k % KEY_INTERVAL == 0))
        milliseconds = 1000 * (time.process_time() - began_s) / FRAMES
        print(f"{name:9} {milliseconds:5.1f} ms  {count / FRAMES / 1000:5.1f} kB a frame")


if __name__ == "__main__":
    main()

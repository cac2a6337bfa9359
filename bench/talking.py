"""README's moving picture: portraits that speak the same sentence, side by side.

python bench/talking.py docs/examples/presenter.jpg docs/examples/monalisa.jpg \\
    --audio docs/examples/speech.wav -o docs/images/talking.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import fada

RATE = 25
QUALITY = 85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("portraits", type=Path, nargs="+")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=300, help="pixels of each portrait")
    args = parser.parse_args()
    with fada.load() as client:
        spoken = [
            [
                cv2.resize(frame.picture, (args.side,) * 2, interpolation=cv2.INTER_AREA)
                for frame in client.animate(portrait, args.audio, frames=True, framing="portrait")
            ]
            for portrait in args.portraits
        ]
    first, *others = (Image.fromarray(np.hstack(beside)) for beside in zip(*spoken, strict=True))
    first.save(
        args.out,
        save_all=True,
        append_images=others,
        duration=1000 // RATE,
        loop=0,
        quality=QUALITY,
        method=4,
    )
    print(f"{args.out}: {1 + len(others)} frames, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

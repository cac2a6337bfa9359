"""A contact sheet of videos: a row of evenly spaced frames for each.

python bench/contact_sheet.py a.mp4 b.mp4 -o sheet.jpg [--from 0.4] [--to 3.0] [--columns 10]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import cv2
import numpy as np


def row(path: Path, start_s: float, stop_s: float, *, columns: int, side: int) -> np.ndarray:
    """(side, columns * side, 3) RGB: frames of ``path`` between the two times."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        fps = float(container.streams.video[0].average_rate or 25)
    last = min(len(frames) - 1, round(stop_s * fps))
    chosen = np.linspace(min(last, round(start_s * fps)), last, columns).round().astype(int)
    tiles = [cv2.resize(frames[i], (side, side), interpolation=cv2.INTER_AREA) for i in chosen]
    return np.hstack(tiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--from", dest="start_s", type=float, default=0.0)
    parser.add_argument("--to", dest="stop_s", type=float, default=1e9)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--side", type=int, default=160)
    args = parser.parse_args()
    rows = [
        row(v, args.start_s, args.stop_s, columns=args.columns, side=args.side) for v in args.videos
    ]
    cv2.imwrite(str(args.out), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()

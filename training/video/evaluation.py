"""The paper's figures on held-out clips, for `fada evaluate-video`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.portrait.face_tracker import FaceTracker
from model.types import FPS, Floats, Guidance
from training.data.tracking import TrackedFrame
from training.evaluation.metrics import frechet_distance
from training.video.clips import ClipEntry, VideoClips
from training.video.features import FrameFeatures, load_mobilenet
from training.video.losses import mouth_weights
from training.video.metrics import (
    Pictures,
    border_flicker,
    flicker,
    mouth_figures,
    psnr,
    ssim,
    tracked,
)
from training.video.rollout import Talker, load_talker, roll_out, window_ms

_MOUTH_PIXELS = 3.0  # times the average weight: the mouth itself

Figures = dict[str, float]


@dataclass(frozen=True)
class VideoReportRow:
    """Something that makes a video of each clip."""

    name: str
    make: Callable[[Sequence[ClipEntry]], list[Pictures]]
    talker: Talker | None = None  # whose cost is measured


class Judge:
    """Holds what all rows are compared with: the true frames, their faces, their features."""

    def __init__(
        self, clips: VideoClips, chosen: Sequence[ClipEntry], mobilenet: Path | None
    ) -> None:
        self.clips, self.chosen = clips, chosen
        self.true = [np.asarray(clips.frames[clip.span]) for clip in chosen]
        self._tracker = FaceTracker()
        self._faces = [tracked(video, self._tracker) for video in self.true]
        self._mouths = [_mouth(clips, clip) for clip in chosen]
        self._features = None
        if mobilenet is not None:
            self._features = FrameFeatures(load_mobilenet(mobilenet), self.true)
            self._real = self._features(self.true)

    def figures(self, row: VideoReportRow, videos: list[Pictures], wall_s: float) -> Figures:
        """All columns of one row, whose ``videos`` took ``wall_s`` to make."""
        faces: list[list[TrackedFrame | None]] = [tracked(video, self._tracker) for video in videos]
        pairs = list(zip(videos, self.true, strict=True))
        found: Figures = {
            "PSNR, dB": float(np.mean([psnr(a, b) for a, b in pairs])),
            "PSNR of the mouth, dB": float(
                np.mean(list(map(psnr, videos, self.true, self._mouths)))
            ),
            "SSIM": float(np.mean([ssim(a, b) for a, b in pairs])),
        }
        found |= mouth_figures(faces, self._faces)
        found["flicker"] = flicker(videos)
        found["flicker at window borders ×"] = border_flicker(videos)
        if self._features is not None:
            found["Fréchet distance"] = frechet_distance(self._features(videos), self._real)
        if row.talker is not None:
            found["NFE a window"] = row.talker.evaluations
            found["ms a window, alone"] = window_ms(row.talker)
            found["frames/s, all together"] = sum(len(v) for v in videos) / wall_s
        return found


def _mouth(clips: VideoClips, clip: ClipEntry) -> Floats:
    """(side, side) 1 where the clip's mouth is, else 0."""
    marks = torch.tensor(clips.marks[clip.span])[None]
    weights = mouth_weights(marks, clips.side, clips.side)[0]
    return np.asarray(weights.numpy() > _MOUTH_PIXELS, np.float32)


def baselines(clips: VideoClips) -> list[VideoReportRow]:
    """What any network must beat, and what none can: the portrait kept still, the true video."""

    def still(chosen: Sequence[ClipEntry]) -> list[Pictures]:
        return [np.repeat(clips.frames[c.first][None], c.frames, axis=0) for c in chosen]

    def true(chosen: Sequence[ClipEntry]) -> list[Pictures]:
        return [np.asarray(clips.frames[c.span]) for c in chosen]

    return [VideoReportRow("true video", true), VideoReportRow("still portrait", still)]


def network_row(
    word: str, clips: VideoClips, seed: int, guidance: Guidance | None
) -> VideoReportRow:
    """``word`` is NAME=WEIGHTS or NAME=WEIGHTS:STEPS; raises ``ValueError`` for anything else."""
    name, separator, file = word.partition("=")
    place, _, steps = file.partition(":")
    if not separator or not name or (steps and not (steps.isdigit() and int(steps))):
        raise ValueError(f"--row {word!r}, expected NAME=WEIGHTS or NAME=WEIGHTS:STEPS")
    talker = load_talker(Path(place), int(steps) if steps else None)
    if guidance is not None:
        talker = replace(talker, guidance=guidance)
    if talker.net.config.side != clips.side:
        raise ValueError(f"{place} draws {talker.net.config.side} px, the clips have {clips.side}")

    def make(chosen: Sequence[ClipEntry]) -> list[Pictures]:
        return roll_out(talker, clips, chosen, seed)

    return VideoReportRow(f"{name}, {talker.evaluations} NFE", make, talker)


def judge_rows(
    judge: Judge, rows: Sequence[VideoReportRow]
) -> tuple[dict[str, Figures], dict[str, list[Pictures]]]:
    """Figures and videos of each row, by name."""
    figures, videos = {}, {}
    for row in tqdm(rows, unit="row", desc="evaluate-video"):
        started = time.perf_counter()
        made = row.make(judge.chosen)
        figures[row.name] = judge.figures(row, made, time.perf_counter() - started)
        videos[row.name] = made
    return figures, videos


def markdown(figures: dict[str, Figures], clips: Sequence[ClipEntry]) -> str:
    """The table: a line a figure, a column a row of `judge_rows`."""
    known = list(dict.fromkeys(name for values in figures.values() for name in values))
    seconds = sum(clip.frames for clip in clips) / FPS
    lines = [
        f"{len(clips)} held-out clips, {seconds:.0f} s, each said anew from its first frame and",
        "its sound. Written by `fada evaluate-video`.",
        "",
        "| | " + " | ".join(figures) + " |",
        "| --- |" + " ---: |" * len(figures),
    ]
    for name in known:
        cells = [_number(values[name]) if name in values else "" for values in figures.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 2 else 3
    return f"{value:.{digits}f}"

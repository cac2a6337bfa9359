"""The paper's figures on held-out clips, for ``fada evaluate-video``."""

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
from training.evaluation.metrics import frechet_distance
from training.evaluation.report import format_figure, parse_row
from training.video.clips import ClipEntry, VideoClips
from training.video.losses import mouth_weights
from training.video.metrics import (
    FrameFeatures,
    Pictures,
    border_flicker,
    flicker,
    load_mobilenet,
    mouth_figures,
    psnr,
    ssim,
    track_video,
)
from training.video.rollout import VideoModel, load_video_model, roll_out, window_ms

_MOUTH_WEIGHT = 3.0  # a pixel with more of `mouth_weights` belongs to the mouth

Figures = dict[str, float]


@dataclass(frozen=True)
class VideoReportRow:
    """Something that makes a video of each clip."""

    name: str
    make: Callable[[Sequence[ClipEntry]], list[Pictures]]
    model: VideoModel | None = None  # whose cost is measured


class VideoEvaluator:
    """Compares videos with the true ones, whose faces and features it holds."""

    def __init__(
        self, clips: VideoClips, chosen: Sequence[ClipEntry], mobilenet: Path | None
    ) -> None:
        self.clips, self.chosen = clips, chosen
        self.true = [np.asarray(clips.frames[clip.span]) for clip in chosen]
        self._tracker = FaceTracker()
        self._faces = [track_video(video, self._tracker) for video in self.true]
        self._mouths = [_mouth_mask(clips, clip) for clip in chosen]
        self._features = None
        if mobilenet is not None:
            self._features = FrameFeatures(load_mobilenet(mobilenet), self.true)
            self._real = self._features(self.true)

    def figures(self, row: VideoReportRow, videos: list[Pictures], wall_s: float) -> Figures:
        """All figures of a row whose ``videos`` took ``wall_s`` seconds to make."""
        faces = [track_video(video, self._tracker) for video in videos]
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
        if row.model is not None:
            found["NFE a window"] = row.model.nfe
            found["ms a window, alone"] = window_ms(row.model)
            found["frames/s, all together"] = sum(len(v) for v in videos) / wall_s
        return found


def _mouth_mask(clips: VideoClips, clip: ClipEntry) -> Floats:
    """(side, side) 1 where the clip's mouth is, else 0."""
    marks = torch.tensor(clips.marks[clip.span])[None]
    weights = mouth_weights(marks, clips.side, clips.side)[0]
    return np.asarray(weights.numpy() > _MOUTH_WEIGHT, np.float32)


def baselines(clips: VideoClips) -> list[VideoReportRow]:
    """The upper bound, which is the true video, and the lower bound: the first frame repeated."""

    def still(chosen: Sequence[ClipEntry]) -> list[Pictures]:
        return [np.repeat(clips.frames[c.first][None], c.frames, axis=0) for c in chosen]

    def true(chosen: Sequence[ClipEntry]) -> list[Pictures]:
        return [np.asarray(clips.frames[c.span]) for c in chosen]

    return [VideoReportRow("true video", true), VideoReportRow("still portrait", still)]


def network_row(
    text: str, clips: VideoClips, *, seed: int, guidance: Guidance | None
) -> VideoReportRow:
    """The row NAME=WEIGHTS or NAME=WEIGHTS:STEPS.

    Raises ``ValueError`` for any other ``text`` and for a network of another size than ``clips``.
    """
    spec = parse_row(text)
    model = load_video_model(spec.weights, spec.steps)
    if guidance is not None:
        model = replace(model, guidance=guidance)
    if model.net.config.side != clips.side:
        raise ValueError(
            f"{spec.weights} draws {model.net.config.side} px, the clips have {clips.side}"
        )

    def make(chosen: Sequence[ClipEntry]) -> list[Pictures]:
        return roll_out(model, clips, chosen, seed=seed)

    return VideoReportRow(f"{spec.name}, {model.nfe} NFE", make, model)


def evaluate_rows(
    evaluator: VideoEvaluator, rows: Sequence[VideoReportRow]
) -> tuple[dict[str, Figures], dict[str, list[Pictures]]]:
    """Figures and videos of each row, by name."""
    figures, videos = {}, {}
    for row in tqdm(rows, unit="row", desc="evaluate-video"):
        started = time.perf_counter()
        made = row.make(evaluator.chosen)
        figures[row.name] = evaluator.figures(row, made, time.perf_counter() - started)
        videos[row.name] = made
    return figures, videos


def markdown(figures: dict[str, Figures], clips: Sequence[ClipEntry]) -> str:
    """A table with a line per figure and a column per row of `evaluate_rows`."""
    known = list(dict.fromkeys(name for values in figures.values() for name in values))
    seconds = sum(clip.frames for clip in clips) / FPS
    lines = [
        f"{len(clips)} held-out clips, {seconds:.0f} s, each generated from its first frame and",
        "its sound. Written by `fada evaluate-video`.",
        "",
        "| | " + " | ".join(figures) + " |",
        "| --- |" + " ---: |" * len(figures),
    ]
    for name in known:
        cells = [format_figure(row[name]) if name in row else "" for row in figures.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"

"""`fada dataset build`: a folder of videos becomes clips for `fada train video-…`.
`fada dataset draw`: GRID's clips, and a folder of portraits drawn with GRID's motion.

Each video becomes a folder of clips under ``parts/``; at the end all are joined. So the command
resumes where it was stopped, and picks up videos that were added later.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fada.cli.track import part_name
from media.footage import Footage, open_footage
from model.audio.frontend import samples_per_row
from model.audio.whisper import WhisperRows
from model.portrait.blendshapes import ACTION_COUNT
from model.portrait.face_tracker import Face, FaceTracker
from model.portrait.framing import MAX_SIZE, Frame, frame
from model.types import FPS, SAMPLES_PER_FRAME, Floats
from model.video.checkpoints import load_vae, load_whisper
from model.video.space import face_square
from model.video.vae import VAE
from model.video.weights import load_net
from training.data.corpus import held_out
from training.data.recordings import (
    RecordedClip,
    TrackedMotion,
    collect_motion,
    cut_clips,
    read_cues,
)
from training.data.tracking import TrackedFrame, at_video_rate, track
from training.video.clips import (
    ClipPiece,
    VideoClips,
    load_clips,
    pieces_of,
    save_index,
    write_clips,
)
from training.video.confidence import score_clips, sharpness
from training.video.rendered_clips import render_clips
from training.video.windows import training_clips

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
SUBTITLES = (".srt", ".vtt")
LEAST_SHARE = 0.3  # of frames with a face, to count as a talking head
ENCODED_AT_ONCE = 4  # frames
OWN_VAE = "vae.safetensors"

Pictures = NDArray[np.uint8]
Encode = Callable[[Pictures], NDArray[np.float16]]  # (T, side, side, 3) → (T, C, h, w)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("build", "draw"),
        help="cut, track, encode and score videos; or draw portraits with GRID's motion",
    )
    parser.add_argument(
        "pictures",
        type=Path,
        help="a folder of videos, or one video; for draw: a folder of portraits",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for `fada train --data`")
    parser.add_argument("--grid", type=Path, help="for draw: GRID's folder (docs/guide/train.md)")
    parser.add_argument(
        "--side", type=int, default=64, help="side of the square frames, pixels [%(default)s]"
    )
    parser.add_argument(
        "--vae", type=Path, help="weights of a VAE: stores latents beside the pixels"
    )
    parser.add_argument(
        "--whisper",
        type=Path,
        help="OpenAI's tiny.pt: stores the audio features of each frame as well",
    )
    parser.add_argument(
        "--view",
        choices=("face", "portrait"),
        default="face",
        help="square around the face, for video-tiny, or with hair and shoulders, for the paper's "
        "size [%(default)s]",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Prepare the videos that are not prepared yet, then join all; or draw."""
    torch.set_num_threads(args.threads)
    settings = ClipSettings(args.side, args.view, vae=args.vae, whisper=args.whisper)
    if args.action == "build":
        build(args.pictures, args.out, settings, threads=args.threads)
    else:
        draw(args.pictures, args.grid, args.out, settings=settings)
    return 0


@dataclass(frozen=True)
class ClipSettings:
    """What a clip stores: squares of ``side`` pixels, and what these networks compute from it."""

    side: int
    view: str = "face"
    vae: Path | None = None
    whisper: Path | None = None

    def __post_init__(self) -> None:
        if self.side < 16 or self.side % 16:
            raise ValueError(f"--side = {self.side}, expected a multiple of 16")


@dataclass(frozen=True)
class Networks:
    """The networks that `ClipSettings` ask for, loaded."""

    tracker: FaceTracker
    encode: Encode | None
    whisper: WhisperRows | None

    @classmethod
    def of(cls, settings: ClipSettings, threads: int) -> Networks:
        vae, whisper = settings.vae, settings.whisper
        return cls(
            FaceTracker(threads),
            None if vae is None else _encoder(_autoencoder(vae)),
            None if whisper is None else WhisperRows(load_whisper(whisper, dtype=torch.float32)),
        )


def build(videos: Path, out: Path, settings: ClipSettings, *, threads: int) -> VideoClips:
    """Write ``out``.

    Raises ``ValueError`` when no video can be used, or ``out`` was begun with other ``settings``.
    """
    parts, listed = out / "parts", _listed(videos)
    _same_settings(parts, str(settings))
    networks = Networks.of(settings, threads)
    done: list[VideoClips] = []
    for video in tqdm(listed, unit="video", desc=str(out)):
        part = parts / part_name(video, None)
        skipped = part.with_name(f"{part.name}.skipped")
        if not (part / "clips.json").is_file() and not skipped.is_file():
            try:
                prepare(video, part, settings, networks=networks)
            except (ValueError, av.FFmpegError) as error:
                reason = f"{video.name}: {error}"
                skipped.write_text(f"{reason}\n")
                tqdm.write(f"left out: {reason}")
        if not skipped.is_file():
            done.append(load_clips(part))
    if not done:
        raise ValueError(f"no video of {videos} has a talking head")
    return joined(done, out, settings.side)


def draw(portraits: Path, grid: Path | None, out: Path, *, settings: ClipSettings) -> VideoClips:
    """Write ``out``.

    Raises ``ValueError`` for flags that do not fit, and for folders without GRID or with too few
    portraits.
    """
    if settings != ClipSettings(settings.side):
        raise ValueError("draw stores squares around the face only: leave out --view, --vae and "
                         "--whisper")  # fmt: skip
    if grid is None:
        raise ValueError("draw needs --grid, GRID's folder: its motion, sound and real video")
    return render_clips(grid, portraits, out, side=settings.side)


def prepare(video: Path, part: Path, settings: ClipSettings, *, networks: Networks) -> VideoClips:
    """One video as a folder of clips. Raises ``ValueError`` for a video that cannot be used."""
    footage = open_footage(video)
    total = None if footage.duration_s is None else int(footage.duration_s * FPS)
    with tqdm(total=total, desc=video.name, unit="frame", leave=False) as bar:
        seen = at_video_rate(track(footage.pictures(), networks.tracker))
        motion = collect_motion(_counted(seen, bar))
    share = float(motion.ok.mean()) if len(motion) else 0.0
    if share < LEAST_SHARE:
        raise ValueError(f"a face is seen in {100 * share:.0f} % of {len(motion)} frames")
    texts = [video.with_suffix(s) for s in SUBTITLES if video.with_suffix(s).is_file()]
    chosen = cut_clips(motion.ok, read_cues(texts[0]) if texts else None)
    if not chosen:
        raise ValueError("no face is visible for two seconds without a break")
    frames = sum(clip.stop - clip.first for clip in chosen)
    pieces = _pieces(footage, motion, chosen, settings=settings, networks=networks)
    return write_clips(part, pieces, frames=frames, side=settings.side)


def joined(parts: list[VideoClips], out: Path, side: int) -> VideoClips:
    """All clips of ``parts`` in one folder, scored against each other."""
    frames = sum(len(part.frames) for part in parts)
    pieces = (piece for part in parts for piece in pieces_of(part))
    clips = write_clips(out, pieces, frames=frames, side=side)
    save_index(out, side, score_clips(clips))
    clips = load_clips(out)
    confidence = np.array([clip.confidence for clip in clips.clips])
    print(
        f"{out}: {len(clips)} clips, {frames / FPS / 60:.1f} min, of {len(parts)} videos; "
        f"{len(training_clips(clips))} to train on, {held_out(len(clips)).sum()} held out; "
        f"confidence {confidence.mean():.2f} on average, below 0.2: {(confidence < 0.2).sum()}"
    )
    return clips


def _listed(videos: Path) -> list[Path]:
    files = [videos] if videos.is_file() else sorted(videos.rglob("*"))
    found = [path for path in files if path.suffix.lower() in VIDEOS]
    if not found:
        raise ValueError(f"{videos} holds no video ({', '.join(VIDEOS)})")
    return found


def _same_settings(parts: Path, settings: str) -> None:
    """Raises ``ValueError`` when ``parts`` were begun with other settings."""
    parts.mkdir(parents=True, exist_ok=True)
    note = parts / "settings.txt"
    if note.is_file() and note.read_text() != settings:
        raise ValueError(f"{parts.parent} was begun with {note.read_text()}, got {settings}")
    note.write_text(settings)


def _pieces(
    footage: Footage,
    motion: TrackedMotion,
    chosen: list[RecordedClip],
    *,
    settings: ClipSettings,
    networks: Networks,
) -> Iterator[ClipPiece]:
    """The clips of a video, decoded again: each in one square around the face's median place."""
    if motion.points is None:
        raise ValueError(f"{footage.path}: tracked without points")
    sound, side = _whole(footage.sound(), len(motion)), settings.side
    pictures = nearest(footage.pictures(), len(motion))
    for number, clip in enumerate(chosen):
        span = slice(clip.first, clip.stop)
        squares: list[Pictures] = []
        view = Frame((0.0, 0.0), 1.0, side, side)
        width = 1
        while len(squares) < clip.stop - clip.first:
            k, picture = next(pictures)
            if k < clip.first:
                continue
            if not squares:
                width = picture.shape[1]
                points = np.median(motion.points[span], axis=0) * width
                if settings.view == "portrait":
                    view = _portrait(picture, points, side, tracker=networks.tracker)
                else:
                    view = face_square(points, side)
            squares.append(np.asarray(view.cut(picture, 0), np.uint8))
        frames = np.stack(squares)
        marks = np.stack([view.place(points * width) for points in motion.points[span]]) / side
        yield ClipPiece(
            name=f"{footage.path.stem}/{number}",
            frames=frames,
            samples=sound[clip.first * SAMPLES_PER_FRAME : clip.stop * SAMPLES_PER_FRAME],
            marks=marks.astype(np.float32),
            coefficients=motion.coefficients[span],
            text=clip.text,
            latents=None if networks.encode is None else networks.encode(frames),
            tokens=None if networks.whisper is None else _tokens(networks.whisper, sound, clip),
            scores={"seen": 1.0, "sharpness": sharpness(frames), "pixels": 1.0 / view.scale},
        )


def nearest(
    pictures: Iterable[tuple[float, Pictures]], frames: int
) -> Iterator[tuple[int, Pictures]]:
    """(k, the picture shown closest to k/25 s) for k from 0 up to ``frames``; times rise."""
    k = 0
    before: tuple[float, Pictures] | None = None
    for time_s, picture in pictures:
        while k < frames and k / FPS <= time_s:
            wanted = k / FPS
            earlier = before is not None and wanted - before[0] < time_s - wanted
            yield k, before[1] if earlier and before is not None else picture
            k += 1
        before = time_s, picture
    while k < frames and before is not None:
        yield k, before[1]
        k += 1


def _whole(blocks: Iterable[Floats], frames: int) -> Floats:
    """The sound of ``frames`` frames, padded with silence."""
    sound = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    at = 0
    for block in blocks:
        part = block[: len(sound) - at]
        sound[at : at + len(part)] = part
        at += len(part)
        if at == len(sound):
            break
    return sound.clip(-1.0, 1.0)


def _portrait(picture: Pictures, points: Floats, side: int, *, tracker: FaceTracker) -> Frame:
    """The square of `VideoSpace`'s ``portrait`` view around ``points`` (62, 2)."""
    landmarks = np.pad(points, ((0, 0), (0, 1))).astype(np.float32)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    box = (float(x0), float(y0), float(x1), float(y1))
    face = Face(landmarks, np.zeros(ACTION_COUNT, np.float32), box, 1.0)
    height, width = picture.shape[:2]
    person = tracker.person(picture, face).whole
    view = frame(
        "portrait", MAX_SIZE, width=width, height=height, landmarks=landmarks, person=person
    )
    return Frame(view.corner, view.scale * side / MAX_SIZE, side, side)


def _tokens(whisper: WhisperRows, sound: Floats, clip: RecordedClip) -> NDArray[np.float16]:
    """(T, S, W) Whisper's features for each frame of ``clip``; ``sound`` is the whole video's."""
    around = np.pad(sound, (whisper.past_samples, whisper.future_samples))
    starts = range(clip.first * SAMPLES_PER_FRAME, clip.stop * SAMPLES_PER_FRAME, SAMPLES_PER_FRAME)
    count = samples_per_row(whisper)
    return np.stack([whisper.row(around[s : s + count]).astype(np.float16) for s in starts])


def _autoencoder(path: Path) -> VAE:
    """This project's ``vae.safetensors``, or a file of diffusers under any other name."""
    if path.name != OWN_VAE:
        return load_vae(path, dtype=torch.float32)
    net, _ = load_net(path, torch.float32)
    if not isinstance(net, VAE):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a VAE")
    return net


def _encoder(vae: VAE) -> Encode:
    def encode(frames: Pictures) -> NDArray[np.float16]:
        found = []
        for at in range(0, len(frames), ENCODED_AT_ONCE):
            pixels = torch.from_numpy(frames[at : at + ENCODED_AT_ONCE]).permute(0, 3, 1, 2)
            with torch.inference_mode():
                found.append(vae.encode(pixels.float() / 127.5 - 1.0).half().numpy())
        return np.concatenate(found)

    return encode


def _counted(found: Iterable[TrackedFrame | None], bar: tqdm) -> Iterator[TrackedFrame | None]:
    for look in found:
        bar.update()
        yield look

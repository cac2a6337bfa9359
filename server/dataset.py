"""``fada dataset build``: a folder of videos as clips that ``fada train video-…`` reads.

Knows: which videos are done already, how squares are cut from pictures, progress. Does not know:
how a face is tracked (`model.training.track`), the folder's layout (`model.training.video.clips`),
what a clip's scores mean (`scores`).

Each video becomes a folder of clips of its own under ``parts/``; when all are done, they are
joined. So the command goes on where it was stopped, and takes in videos that came later.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model.conditioning import FPS, SAMPLES_PER_FRAME, Floats
from model.portrait.framing import Frame
from model.portrait.landmarks import FaceTracker
from model.training.corpus import held_out
from model.training.takes import Clip, Take, cut, read_cues, take_of
from model.training.track import Look, at_video_rate, looks
from model.training.video.clips import (
    Piece,
    VideoClips,
    load_clips,
    save_index,
    write_clips,
)
from model.training.video.scores import judged, sharpness
from model.training.video.windows import training_clips
from model.video.checkpoints import load_vae
from model.video.space import face_square
from model.video.vae import VAE
from model.video.weights import load_net
from server.media.footage import Footage, open_footage
from server.track import part_name

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
SUBTITLES = (".srt", ".vtt")
LEAST_SHARE = 0.3  # of frames with a face: less is no talking head
ENCODED_AT_ONCE = 4  # frames
OWN_VAE = "vae.safetensors"

Pictures = NDArray[np.uint8]
Encode = Callable[[Pictures], NDArray[np.float16]]  # (T, side, side, 3) → (T, C, h, w)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fada dataset``."""
    parser.add_argument("action", choices=("build",), help="cut, track, encode and judge videos")
    parser.add_argument("videos", type=Path, help="a folder of videos, or one video")
    parser.add_argument("--out", type=Path, required=True, help="folder for `fada train --data`")
    parser.add_argument("--side", type=int, default=64, help="pixels of a square [%(default)s]")
    parser.add_argument(
        "--vae", type=Path, help="an autoencoder's weights: latents are kept beside the pixels"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the networks [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Prepares what is not prepared yet, then joins all. Returns the exit code."""
    try:
        torch.set_num_threads(args.threads)
        build(args.videos, args.out, args.side, args.vae, args.threads)
    except ValueError as error:
        sys.exit(f"fada dataset: {error}")
    return 0


def build(videos: Path, out: Path, side: int, vae: Path | None, threads: int) -> VideoClips:
    """The folder ``out``. Raises ``ValueError`` when there is nothing to learn from in ``videos``,
    or ``out`` was begun with other squares or another autoencoder."""
    if side < 16 or side % 16:
        raise ValueError(f"--side {side}, expected a multiple of 16")
    parts = out / "parts"
    _same_settings(parts, f"side {side}, vae {None if vae is None else vae.resolve()}")
    encode = None if vae is None else _encoder(_autoencoder(vae))
    tracker = FaceTracker(threads)
    done: list[VideoClips] = []
    for video in tqdm(_listed(videos), unit="video", desc=str(out)):
        part = parts / part_name(video, None)
        skipped = part.with_suffix(".skipped")
        if not (part / "clips.json").is_file() and not skipped.is_file():
            try:
                prepare(video, part, side, tracker, encode)
            except (ValueError, av.FFmpegError) as error:
                reason = f"{video.name}: {error}"
                skipped.write_text(f"{reason}\n")
                tqdm.write(f"left out: {reason}")
        if not skipped.is_file():
            done.append(load_clips(part))
    if not done:
        raise ValueError(f"no video of {videos} has a talking head")
    return joined(done, out, side)


def prepare(
    video: Path, part: Path, side: int, tracker: FaceTracker, encode: Encode | None
) -> VideoClips:
    """One video as a folder of clips. Raises ``ValueError`` that says why it cannot be used."""
    footage = open_footage(video)
    total = None if footage.duration_s is None else int(footage.duration_s * FPS)
    with tqdm(total=total, desc=video.name, unit="frame", leave=False) as bar:
        seen = at_video_rate(looks(footage.pictures(), tracker))
        take = take_of(_counted(seen, bar))
    share = float(take.ok.mean()) if len(take) else 0.0
    if share < LEAST_SHARE:
        raise ValueError(f"a face is seen in {100 * share:.0f} % of {len(take)} frames")
    texts = [video.with_suffix(s) for s in SUBTITLES if video.with_suffix(s).is_file()]
    chosen = cut(take.ok, read_cues(texts[0]) if texts else None)
    if not chosen:
        raise ValueError("a face is nowhere seen for two seconds without a break")
    frames = sum(clip.stop - clip.first for clip in chosen)
    return write_clips(part, _pieces(footage, take, chosen, side, encode), frames, side)


def joined(parts: list[VideoClips], out: Path, side: int) -> VideoClips:
    """All clips of ``parts`` in one folder, judged and weighed against each other."""
    frames = sum(len(part.frames) for part in parts)
    clips = write_clips(out, (p for part in parts for p in _again(part)), frames, side)
    save_index(out, side, judged(clips))
    clips = load_clips(out)
    trust = np.array([clip.trust for clip in clips.clips])
    print(
        f"{out}: {len(clips)} clips, {frames / FPS / 60:.1f} min, of {len(parts)} videos; "
        f"{len(training_clips(clips))} to learn from, {held_out(len(clips)).sum()} held out; "
        f"trust {trust.mean():.2f} on average, below 0.2: {(trust < 0.2).sum()}"
    )
    return clips


def _listed(videos: Path) -> list[Path]:
    files = [videos] if videos.is_file() else sorted(videos.rglob("*"))
    found = [path for path in files if path.suffix.lower() in VIDEOS]
    if not found:
        raise ValueError(f"{videos} holds no video ({', '.join(VIDEOS)})")
    return found


def _same_settings(parts: Path, settings: str) -> None:
    """Raises ``ValueError`` when ``parts`` were begun otherwise."""
    parts.mkdir(parents=True, exist_ok=True)
    note = parts / "settings.txt"
    if note.is_file() and note.read_text() != settings:
        raise ValueError(f"{parts.parent} was begun with {note.read_text()}, not {settings}")
    note.write_text(settings)


def _pieces(
    footage: Footage, take: Take, chosen: list[Clip], side: int, encode: Encode | None
) -> Iterator[Piece]:
    """The clips of a video, decoded once more: each in one square, where its face mostly is."""
    if take.points is None:
        raise ValueError(f"{footage.path}: a take without points")
    sound = _whole(footage.sound(), len(take))
    pictures = nearest(footage.pictures(), len(take))
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
                view = face_square(np.median(take.points[span], axis=0) * width, side)
            squares.append(np.asarray(view.cut(picture, 0), np.uint8))
        frames = np.stack(squares)
        marks = np.stack([view.place(points * width) for points in take.points[span]]) / side
        yield Piece(
            f"{footage.path.stem}/{number}",
            frames,
            sound[clip.first * SAMPLES_PER_FRAME : clip.stop * SAMPLES_PER_FRAME],
            marks.astype(np.float32),
            take.coefficients[span],
            clip.text,
            None if encode is None else encode(frames),
            {"seen": 1.0, "sharpness": sharpness(frames), "pixels": 1.0 / view.scale},
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


def _again(part: VideoClips) -> Iterator[Piece]:
    for clip in part.clips:
        yield Piece(
            clip.name,
            part.frames[clip.span],
            part.sound(clip),
            part.marks[clip.span],
            part.coefficients[clip.span],
            clip.text,
            None if part.latents is None else part.latents[clip.span],
            clip.scores,
        )


def _whole(blocks: Iterable[Floats], frames: int) -> Floats:
    """The sound of ``frames`` frames; silent where the stream ends earlier."""
    sound = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    at = 0
    for block in blocks:
        part = block[: len(sound) - at]
        sound[at : at + len(part)] = part
        at += len(part)
        if at == len(sound):
            break
    return sound.clip(-1.0, 1.0)


def _autoencoder(path: Path) -> VAE:
    """This project's own ``vae.safetensors``, or one of diffusers' files under any other name."""
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


def _counted(found: Iterable[Look | None], bar: tqdm) -> Iterator[Look | None]:
    for look in found:
        bar.update()
        yield look

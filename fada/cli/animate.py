"""`fada animate`: one video, or its motion, into a file, made in this process or by a service."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fada.cli.settings import add_setting_flag, read_settings
from server.api.protocol import ALLOWED, AnimationOptions
from server.errors import SetupError
from server.motion import JSON_LINES, LIVE_LINK

_FLAGS = tuple(name for name in ALLOWED if name != "output")  # -o or --motion say that
_MOTION_FILES = tuple(f".{one.suffix}" for one in (LIVE_LINK, JSON_LINES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("portrait", type=Path, help="JPEG, PNG, WebP, AVIF or HEIC")
    parser.add_argument("audio", type=Path, help="WAV, FLAC, MP3, Ogg, M4A, WebM, ...")
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("-o", "--out", type=Path, metavar="OUT.mp4", help="the video")
    made.add_argument(
        "--motion",
        type=Path,
        metavar="OUT.csv",
        help="instead of the video, its ARKit actions and head pose: a table as of Live Link Face, "
        "or OUT.jsonl",
    )
    parser.add_argument("--url", help="a service that makes the video, like http://127.0.0.1:8000")
    parser.add_argument("--api-key", metavar="KEY", help="the service's key, with --url")
    add_setting_flag(
        parser, "weights", "weights", summary="file with a student of your own, without --url"
    )
    for name in _FLAGS:
        field = AnimationOptions.model_fields[name]
        default = "" if field.default is None else f" [{field.default}]"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=name.upper(),
            help=f"{field.description}: {ALLOWED[name]}{default}",
        )


def run(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in _FLAGS if getattr(options, name) is not None}
    if options.motion is not None:
        if options.motion.suffix.lower() not in _MOTION_FILES:
            raise SetupError(f"--motion {options.motion}, expected *{' or *'.join(_MOTION_FILES)}")
        given["output"] = "motion"
    from fada_client import FadaError

    try:
        if options.url is None:
            _here(options, given)
        else:
            _by_service(options, given)
    except FadaError as error:
        raise SetupError(f"{error.code}: {error.detail}") from error
    return 0


def _here(options: argparse.Namespace, given: dict[str, Any]) -> None:
    if options.api_key is not None:
        raise SetupError("--api-key is for a service: give its --url as well")
    settings = read_settings(options)
    from tqdm import tqdm

    from fada.local import LocalClient  # torch
    from fada.motion import motion_file

    out: Path = options.out or options.motion
    with (
        LocalClient(settings, given.get("model")) as client,
        put_in_place(out) as file,
        client.animate(options.portrait, options.audio, **given) as video,
        tqdm(total=video.total_frames, unit="frame", disable=not sys.stderr.isatty()) as bar,
    ):
        for unit in video if options.motion is None else motion_file(video, out):
            file.write(unit)
            bar.update(video.frames - bar.n)
        file.flush()
        if options.motion is None:
            client.marks.sign_file(Path(file.name))
        took_s = time.monotonic() - video.began_s
    _warn(video.warnings)
    print(
        f"{out}: {video.duration_s:.2f} s, {video.frames} frames, seed {video.seed}; "
        f"made in {took_s:.2f} s, {video.duration_s / took_s:.1f} times real time"
    )


def _by_service(options: argparse.Namespace, given: dict[str, Any]) -> None:
    if options.set_weights is not None:
        raise SetupError("--weights is for this process: a service at --url has its own students")
    from fada_client import Client

    from fada.motion import motion_file

    out: Path = options.out or options.motion
    began_s = time.monotonic()
    with (
        Client(options.url, options.api_key) as client,
        put_in_place(out) as file,
        client.animate(options.portrait, options.audio, **given) as video,
    ):
        file.writelines(video if options.motion is None else motion_file(video, out))
    took_s = time.monotonic() - began_s
    _warn(video.warnings)
    print(f"{out}: seed {video.seed}; made by {options.url} in {took_s:.2f} s")


def _warn(warnings: Iterable[str]) -> None:
    """Print what was repaired in the sound."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


@contextmanager
def put_in_place(out: Path) -> Iterator[BinaryIO]:
    """A file beside ``out`` that takes its name when the block succeeds, else is removed."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)

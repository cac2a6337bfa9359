"""`fada animate`: one video into a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from fada.cli.settings import add_setting_flag, read_settings
from server.api.protocol import ALLOWED, AnimationOptions, parse_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("portrait", type=Path, help="JPEG, PNG or WebP")
    parser.add_argument("audio", type=Path, help="WAV, FLAC, MP3, OGG, M4A or WebM")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.mp4")
    add_setting_flag(parser, "weights", "weights", "file with a student of your own")
    for name, field in AnimationOptions.model_fields.items():
        default = "" if field.default is None else f" [{field.default}]"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=name.upper(),
            help=f"{field.description}: {ALLOWED[name]}{default}",
        )


def run(options: argparse.Namespace) -> int:
    settings = read_settings(options)
    given = {name: getattr(options, name) for name in ALLOWED}
    parsed = parse_options({name: text for name, text in given.items() if text is not None})
    from fada.local import animate  # torch

    animate(settings, options.portrait, options.audio, options.out, parsed)
    return 0

"""`fada verify`: which marks a video bears, and whether they hold."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from media.errors import MediaError
from media.verify import MarksReport, read_marks
from server.errors import SetupError

_HEAD = ("mark", "where", "source type", "tool", "date", "status")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a video")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.add_argument(
        "--anchors", type=Path, metavar="PEM", help="certificates whose signers are trusted"
    )


def run(options: argparse.Namespace) -> int:
    """0 if the file has marks and none is broken, else 1."""
    anchors = None if options.anchors is None else options.anchors.read_text()
    try:
        with options.file.open("rb") as file:
            report = read_marks(file, anchors)
    except MediaError as error:
        raise SetupError(f"{options.file}: {error}") from error
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print(_text(report, options.file))
    return 0 if report.verdict in ("signed", "claimed, unsigned", "unchecked") else 1


def _text(report: MarksReport, file: Path) -> str:
    rows = [_HEAD] + [
        (mark.name, mark.where, mark.source_type, mark.tool, mark.date, mark.status)
        for mark in report.marks
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    details = [f"{mark.name}: {mark.detail}" for mark in report.marks if mark.name == "C2PA"]
    says = "says that AI made it" if report.made_by_ai else "does not say that AI made it"
    verdict = f"{file}: {report.verdict}; {says}"
    return "\n".join([*(lines if report.marks else []), *details, verdict])

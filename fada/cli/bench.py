"""`fada bench live`: the load on a service, and whether sessions keep real time."""

from __future__ import annotations

import argparse
import asyncio
import re
from contextlib import nullcontext
from pathlib import Path

from fada_client import Client, FadaError

import server
from bench.live import load, report
from bench.live.service import Service, own_service
from bench.live.session import Voice
from server.errors import SetupError
from server.process import usable_cores
from server.supervisor import worker_count

_EXAMPLES = Path(server.__file__).parent / "static" / "examples"
_MOST = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="bench", required=True)
    summary = "measure whether many live sessions keep real time"
    command = kinds.add_parser("live", help=summary, description=summary)
    command.add_argument("--sessions", type=int, default=8, help="number of sessions [%(default)s]")
    command.add_argument(
        "--search",
        action="store_true",
        help="find the largest number that keeps real time, up to --sessions",
    )
    command.add_argument("--url", help="a running service, ws:// or http:// [starts one]")
    command.add_argument(
        "--workers",
        type=int,
        default=worker_count(None, usable_cores()),
        help="workers of the service that it starts [%(default)s]",
    )
    command.add_argument(
        "--seconds", type=float, default=20.0, help="length of each run [%(default)s]"
    )
    command.add_argument("--size", type=int, default=512, help="pixels [%(default)s]")
    command.add_argument("--portrait", type=Path, default=_EXAMPLES / "presenter.jpg")
    command.add_argument("--voice", type=Path, default=_EXAMPLES / "speech.wav", help="mono WAV")
    command.add_argument("--json", type=Path, metavar="OUT.json", help="write the figures")
    command.add_argument(
        "--plot", type=Path, metavar="OUT.png", help="draw them (.png or .svg; needs matplotlib)"
    )


def run(options: argparse.Namespace) -> int:
    """0 when the number of sessions asked for kept real time, else 1."""
    if not 1 <= options.sessions <= _MOST:
        raise OSError(f"--sessions = {options.sessions}, expected 1 to {_MOST}")
    if options.seconds < 1:
        raise OSError(f"--seconds = {options.seconds:g}, expected at least 1")
    service = (
        own_service(options.sessions, options.workers)
        if options.url is None
        else nullcontext(Service(re.sub("^ws", "http", options.url).rstrip("/"), None))
    )
    with service as running:
        avatar_id = _avatar(running.url, options.portrait)
        plan = load.Plan(running, avatar_id, options.size, Voice.read(options.voice))
        return asyncio.run(_run(plan, options))


def _avatar(url: str, portrait: Path) -> str:
    try:
        with Client(url) as client:
            return client.create_avatar(portrait).avatar_id
    except FadaError as error:
        raise SetupError(f"{url}: {error.code}: {error.detail}") from error


async def _run(plan: load.Plan, options: argparse.Namespace) -> int:
    print(f"{report.processor()}, {options.size} pixels", flush=True)
    first = await load.first_fragments(plan)
    print(report.first_line(first), flush=True)
    found: int | None = None
    if options.search:
        runs = await load.search(plan, options.seconds, options.sessions)
        found = load.largest(runs)
    else:
        runs = [await load.load(plan, options.sessions, options.seconds)]
    for one in runs:
        print(*report.lines(one), sep="\n", flush=True)
    if found is not None:
        print(f"largest number that keeps real time: {found} (of at most {options.sessions})")
    if options.json is not None:
        options.json.write_text(report.as_json(options.size, first, runs, largest=found))
    if options.plot is not None:
        report.plot(options.plot, runs)
    return 0 if (found == options.sessions if options.search else runs[0].real_time) else 1

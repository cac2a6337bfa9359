"""The `fada` command.

Each command's code is loaded only when it runs: `fada serve` and `fada api` never load torch.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from server import logs, traces
from server.api.protocol import ALLOWED, AnimationOptions, parse_options
from server.broker.redis import expect_answer
from server.errors import ServiceError, SetupError
from server.settings import SECRET, Settings, check_names, describe

log = logging.getLogger("fada")

# Commands whose flags are their own module's: loaded only when they are meant.
_MOUNTED = {
    "track": "fada.cli.track",
    "train": "fada.cli.train",
    "corpus": "fada.cli.corpus",
    "evaluate": "training.evaluation.evaluate",
    "dataset": "fada.cli.dataset",
    "evaluate-video": "training.video.evaluation",
    "bench": "server.bench.cli",
    "engines": "fada.cli.engines",
}


# Which extra a command needs, where it is not `worker`.
_EXTRAS = {
    **dict.fromkeys(("track", "train", "evaluate", "dataset", "evaluate-video"), "train"),
    "corpus": "corpus",
}
_REDIS_PATIENCE_S = 10.0


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exit statuses: 0 done, 1 failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logs.configure("text")
    options = argparse.Namespace(command=words[0] if words else "")
    try:
        options = _parser(options.command).parse_args(words)
        sys.exit(_run(options))
    except ServiceError as error:
        sys.exit(f"fada: {error.code}: {error.detail}")
    except (OSError, SetupError) as error:
        sys.exit(f"fada: {error}")
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(options.command, "worker")
        sys.exit(f"fada: {error.name} is not installed: pip install 'fada[{extra}]'")
    except RuntimeError as error:
        if "cannot cache function" not in str(error):  # numba's
            raise
        sys.exit("fada: no folder for compiled code can be written; NUMBA_CACHE_DIR names one")
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        given = "" if name in SECRET else f", got {first['input']!r}"
        sys.exit(f"fada: setting FADA_{name.upper()}: {first['msg']}{given}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run(options: argparse.Namespace) -> int:
    if options.command in _MOUNTED:
        return int(importlib.import_module(_MOUNTED[options.command]).run(options) or 0)
    for name in check_names(os.environ):
        log.warning("%s is no setting of fada, and not read", name)
    _set_by_flags(options)
    settings = Settings()  # type: ignore[call-arg]  # all have defaults
    if options.command == "animate":
        return _animate(settings, options)
    if options.command == "health":
        return _health(settings, options)
    logs.configure(settings.log_format)
    traces.configure("worker" if options.command == "worker" else "api")
    if options.command == "worker":
        from server.worker.loading import model_names

        model_names(settings)  # a name that nobody has is said first
    if settings.redis_url is not None:
        asyncio.run(expect_answer(settings.redis_url, _REDIS_PATIENCE_S))
    if options.command == "worker":
        url = _need_redis(settings, "fada worker")
        from server.worker import worker

        worker.main(settings, url)
        return 0
    from server import run

    with run.listening(options.host, options.port) as sock:
        if options.command == "api":
            url = _need_redis(settings, "fada api")
            return run.serve_api(settings, url, sock, options.host)
        if options.workers is not None:
            settings = Settings(workers=options.workers)  # type: ignore[call-arg]
        return run.serve_all(settings, sock, options.host)


def _set_by_flags(options: argparse.Namespace) -> None:
    """A flag is its setting, also to the processes that are started."""
    for name in Settings.model_fields:
        value = getattr(options, f"set_{name}", None)
        if value is not None:
            os.environ[f"FADA_{name.upper()}"] = value


def _animate(settings: Settings, options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ALLOWED}
    parsed = parse_options({name: text for name, text in given.items() if text is not None})
    from fada.cli.animate import animate

    animate(settings, options.portrait, options.audio, options.out, parsed)
    return 0


def _health(settings: Settings, options: argparse.Namespace) -> int:
    from fada.cli import health

    if options.role == "api":
        return 0 if health.api_lives(options.port) else 1
    return 0 if health.worker_lives(_need_redis(settings, "fada health worker")) else 1


def _need_redis(settings: Settings, command: str) -> str:
    if settings.redis_url is None:
        raise OSError(f"{command} needs FADA_REDIS_URL; `fada serve` brings its own")
    return settings.redis_url


def _parser(first: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fada",
        description="A portrait and speech in, a talking video out while it is being made.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_services(commands)
    _add_animate(commands)
    words = "whether the API or a worker of this machine lives: exit status 0 or 1"
    health = commands.add_parser("health", help=words, description=words)
    health.add_argument("role", choices=["api", "worker"])
    health.add_argument("--port", type=int, default=8000, help="the API's [%(default)s]")
    for name, words in {
        "track": "turn recordings of a speaker into data to train on",
        "train": "train a teacher or a student",
        "corpus": "make synthetic speech to train on",
        "evaluate": "judge a student's motion, or all in one table",
        "dataset": "turn videos into data to train video networks on",
        "evaluate-video": "judge video networks on held-out clips, all in one table",
        "bench": "measure a running service",
        "engines": "build a network's engines, and list them",
    }.items():
        command = commands.add_parser(name, help=words)
        if name == first:
            importlib.import_module(_MOUNTED[name]).add_arguments(command)
    return parser


def _add_services(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, words in {
        "serve": "the whole service on this machine",
        "api": "the HTTP half of the service; needs FADA_REDIS_URL",
        "worker": "one worker of the service; needs FADA_REDIS_URL",
    }.items():
        command = commands.add_parser(
            name,
            help=words,
            description=words,
            epilog=describe(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != "api":
            _add_flag(command, "model", "models", "students to load")
            _add_flag(command, "weights", "weights", "file with a student of your own")
            _add_flag(command, "model-name", "model_name", "what to call it")
        if name == "worker":
            continue
        command.add_argument("--host", default="127.0.0.1", help="[%(default)s]")
        command.add_argument("--port", type=_port, default=8000, help="[%(default)s]")
        if name == "serve":
            command.add_argument("--workers", type=int, help="worker processes [FADA_WORKERS]")


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port, expected 0 to 65535")
    return int(text)


def _add_flag(command: argparse.ArgumentParser, flag: str, setting: str, words: str) -> None:
    name = f"FADA_{setting.upper()}"
    metavar = flag.rpartition("-")[2].upper()
    words = f"{words} [{name}]"
    command.add_argument(f"--{flag}", dest=f"set_{setting}", metavar=metavar, help=words)


def _add_animate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "make one video, without a service"
    command = commands.add_parser("animate", help=words, description=words)
    command.add_argument("portrait", type=Path, help="JPEG, PNG or WebP")
    command.add_argument("audio", type=Path, help="WAV, FLAC, MP3, OGG, M4A or WebM")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.mp4")
    _add_flag(command, "weights", "weights", "file with a student of your own")
    for name, field in AnimationOptions.model_fields.items():
        default = "" if field.default is None else f" [{field.default}]"
        command.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=name.upper(),
            help=f"{field.description}: {ALLOWED[name]}{default}",
        )


if __name__ == "__main__":
    main()

"""The `fada` command: a module for each subcommand, imported when it is called.

Each has ``add_arguments(parser)`` and ``run(options)``, which returns the exit status.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server import logs
from server.errors import ServiceError, SetupError


@dataclass(frozen=True)
class Command:
    """``extra`` of the distribution `fada` holds what ``module`` imports beyond the base."""

    module: str
    summary: str
    extra: str = "serve"


@dataclass(frozen=True)
class PluginCommand:
    """A command of another ``distribution``, by its entry point in the group `fada.commands`."""

    distribution: str
    summary: str


COMMANDS = {
    "serve": Command("serve", "run the whole service on this machine"),
    "api": Command("api", "run the HTTP half of the service; needs FADA_REDIS_URL"),
    "worker": Command("worker", "run one worker of the service; needs FADA_REDIS_URL"),
    "animate": Command("animate", "make one video, in this process or by a service"),
    "verify": Command("verify", "show which marks a video bears, and whether they hold"),
    "licenses": Command("licenses", "list libraries, weights and data with their licences"),
    "health": Command("health", "check that the API or a worker of this machine is alive"),
    "doctor": Command("doctor", "show what this machine has, and what is missing"),
    "engines": Command("engines", "build, list and check compiled networks"),
    "bench": Command("bench", "measure a running service", extra="train"),
    "track": Command("track", "turn recordings of a speaker into training data", extra="train"),
    "dataset": Command("dataset", "turn videos into training data for video models", extra="train"),
    "corpus": Command("corpus", "synthesise speech to train on", extra="corpus"),
    "train": Command("train", "train a teacher or a student", extra="train"),
    "evaluate": Command("evaluate", "measure motion models on held-out speech", extra="train"),
    "evaluate-video": Command(
        "evaluate_video", "measure video models on held-out clips", extra="train"
    ),
}
# Named here, so that help shows them without a search; nothing of ours imports an integration.
PLUGIN_COMMANDS = {
    "livekit-bridge": PluginCommand(
        "livekit-plugins-fada", "join LiveKit rooms as avatars, for agents elsewhere"
    ),
}
# Their ValueErrors are about flags and data; those of other commands are bugs.
_TOOLS = frozenset({"engines", "track", "dataset", "corpus", "train", "evaluate", "evaluate-video"})
_OURS = frozenset({"fada", "server", "training", "engines", "media", "model", "bench"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit statuses: 0 done, 1 failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    logs.configure("text")
    try:
        options = _parser(name).parse_args(words)
        sys.exit(_module(name).run(options) or 0)
    except ServiceError as error:
        sys.exit(f"fada: {error.code}: {error.detail}")
    except (OSError, SetupError) as error:
        sys.exit(f"fada: {error}")
    except ValueError as error:
        if name not in _TOOLS:
            raise
        sys.exit(f"fada {name}: {error}")
    except ModuleNotFoundError as error:
        package, _, module = (error.name or "").partition(".")
        if package in _OURS:
            if module:
                raise  # a bug of ours, not a missing package
            sys.exit(f"fada {name} is not in this image, which leaves out {package!r}")
        if name in PLUGIN_COMMANDS:
            raise
        extra = COMMANDS[name].extra
        sys.exit(
            f"fada {name} needs the extra \"{extra}\": pip install 'fada[{extra}]' "
            f"({package} is not installed)"
        )
    except RuntimeError as error:
        if "cannot cache function" not in str(error):  # Numba's
            raise
        sys.exit("fada: cannot write compiled code: set NUMBA_CACHE_DIR to a writable folder")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser(chosen: str) -> argparse.ArgumentParser:
    """All commands by name; only ``chosen`` has its flags, for they need its imports."""
    parser = argparse.ArgumentParser(
        prog="fada",
        description="A portrait and speech in, a talking video out while it is being made.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in (COMMANDS | PLUGIN_COMMANDS).items():
        one = commands.add_parser(name, help=command.summary, description=command.summary)
        if name == chosen:
            _module(name).add_arguments(one)
    return parser


class _Version(argparse.Action):
    """argparse's own needs the version, and so the client's imports, before the flag is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from fada_client import __version__

        print(f"fada {__version__}")
        parser.exit()


def _module(name: str) -> Any:
    if name in PLUGIN_COMMANDS:
        return _plugged_in(name, PLUGIN_COMMANDS[name].distribution)
    gc.disable()  # importing makes objects that stay
    try:
        return importlib.import_module(f"fada.cli.{COMMANDS[name].module}")
    finally:
        gc.enable()


def _plugged_in(name: str, distribution: str) -> Any:
    from importlib.metadata import entry_points  # no other command needs it

    for found in entry_points(group="fada.commands", name=name):
        return found.load()
    raise SetupError(f"{name} comes with another package: pip install {distribution}")

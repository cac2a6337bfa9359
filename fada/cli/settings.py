"""Settings on the command line: what the commands of the service share."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from importlib.util import find_spec

from pydantic import ValidationError

from server import logs, traces
from server.errors import SetupError
from server.settings import SECRET, Settings, check_names, describe

log = logging.getLogger("fada")

_REDIS_TIMEOUT_S = 10.0
_WORKERS_NEED = ("av", "numba", "numpy", "soxr")


def list_settings(parser: argparse.ArgumentParser) -> None:
    """Let ``--help`` end with all settings."""
    parser.epilog = describe()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def add_student_flags(parser: argparse.ArgumentParser) -> None:
    add_setting_flag(parser, "model", "models", summary="students to load")
    add_setting_flag(parser, "weights", "weights", summary="file with a student of your own")
    add_setting_flag(parser, "model-name", "model_name", summary="its name")


def add_address_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="[%(default)s]")
    parser.add_argument("--port", type=_port, default=8000, help="[%(default)s]")


def add_setting_flag(
    parser: argparse.ArgumentParser, flag: str, setting: str, *, summary: str
) -> None:
    """A flag that takes the place of ``FADA_<setting>``."""
    metavar = flag.rpartition("-")[2].upper()
    summary = f"{summary} [FADA_{setting.upper()}]"
    parser.add_argument(f"--{flag}", dest=f"set_{setting}", metavar=metavar, help=summary)


def read_settings(options: argparse.Namespace) -> Settings:
    """Settings from environment and flags. Raises `SetupError` for one that is not valid."""
    for name in check_names(os.environ):
        log.warning("ignored %s: fada has no such setting", name)
    for name in Settings.model_fields:
        value = getattr(options, f"set_{name}", None)
        if value is not None:  # in the environment, so that child processes have it as well
            os.environ[f"FADA_{name.upper()}"] = value
    try:
        return Settings()  # type: ignore[call-arg]  # all have defaults
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        given = "" if name in SECRET else f", got {first['input']!r}"
        raise SetupError(f"setting FADA_{name.upper()}: {first['msg']}{given}") from error


def start_logging(settings: Settings, role: str) -> None:
    """Logs and traces of a service's process; ``role`` is ``api`` or ``worker``."""
    logs.configure(settings.log_format)
    traces.configure(role)


def check_packages(settings: Settings) -> None:
    """Raises ``ModuleNotFoundError`` for what a worker lacks, before any process is started."""
    for name in (*_WORKERS_NEED, *(() if settings.pipeline else ("torch",))):
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


def wait_for_redis(settings: Settings) -> None:
    """Raises `SetupError` when the Redis of ``settings`` does not answer within ten seconds."""
    if settings.redis_url is not None:
        from server.broker.redis import check_connection

        asyncio.run(check_connection(settings.redis_url, _REDIS_TIMEOUT_S))


def required_redis_url(settings: Settings, command: str) -> str:
    if settings.redis_url is None:
        raise SetupError(f"{command} needs FADA_REDIS_URL; `fada serve` starts a Redis of its own")
    return settings.redis_url


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"port = {text!r}, expected 0 to 65535")
    return int(text)

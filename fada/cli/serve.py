"""`fada serve`: API, workers and, unless FADA_REDIS_URL is set, an embedded Valkey."""

from __future__ import annotations

import argparse

from fada.cli.settings import (
    add_address_flags,
    add_student_flags,
    check_packages,
    list_settings,
    read_settings,
    start_logging,
    wait_for_redis,
)
from server import run as service
from server.settings import Settings

_MARKS = {"encoder", "label", "c2pa_cert", "c2pa_key"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    list_settings(parser)
    add_student_flags(parser)
    add_address_flags(parser)
    parser.add_argument("--workers", type=int, help="worker processes [FADA_WORKERS]")


def run(options: argparse.Namespace) -> int:
    settings = read_settings(options)
    start_logging(settings, "api")
    check_packages(settings)
    _check_marks(settings)
    wait_for_redis(settings)
    with service.listening(options.host, options.port) as sock:
        if options.workers is not None:
            settings = Settings(workers=options.workers)  # type: ignore[call-arg]
        return service.serve_all(settings, sock, options.host)


def _check_marks(settings: Settings) -> None:
    """Raises `SetupError` for an encoder or marks that no worker could make."""
    if not _MARKS & settings.model_fields_set:
        return  # and save the API's process the libraries
    from server.worker.marks import load_marks

    load_marks(settings)

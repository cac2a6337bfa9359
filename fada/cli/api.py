"""`fada api`: the HTTP half of a service on several machines."""

from __future__ import annotations

import argparse

from fada.cli.settings import (
    add_address_flags,
    list_settings,
    read_settings,
    required_redis_url,
    start_logging,
    wait_for_redis,
)
from server import run as service


def add_arguments(parser: argparse.ArgumentParser) -> None:
    list_settings(parser)
    add_address_flags(parser)


def run(options: argparse.Namespace) -> int:
    settings = read_settings(options)
    start_logging(settings, "api")
    wait_for_redis(settings)
    with service.listening(options.host, options.port) as sock:
        url = required_redis_url(settings, "fada api")
        return service.serve_api(settings, sock, options.host, url=url)

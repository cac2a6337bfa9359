"""`fada worker`: one worker of a service on several machines."""

from __future__ import annotations

import argparse

from fada.cli.settings import (
    add_student_flags,
    check_packages,
    list_settings,
    read_settings,
    required_redis_url,
    start_logging,
    wait_for_redis,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    list_settings(parser)
    add_student_flags(parser)


def run(options: argparse.Namespace) -> int:
    settings = read_settings(options)
    start_logging(settings, "worker")
    check_packages(settings)
    from server.worker.pipelines import model_names

    model_names(settings)  # report an unknown model before waiting for Redis
    wait_for_redis(settings)
    url = required_redis_url(settings, "fada worker")
    from server.worker import worker

    worker.main(settings, url)
    return 0

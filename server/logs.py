"""Log lines as text or as JSON objects, each with the ids of its request and job."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

_ids: ContextVar[Mapping[str, str]] = ContextVar("ids", default=MappingProxyType({}))


def bind(**ids: str) -> None:
    """Add ids to every log line of this task and of the tasks that it starts."""
    _ids.set({**_ids.get(), **ids})


def configure(log_format: str) -> None:
    """Log to stderr as ``text`` or ``json``."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class _TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in _ids.get().items())
        return super().formatMessage(record) + (f" [{ids}]" if ids else "")


class _JsonLines(logging.Formatter):
    """The items of ``extra={"fields": {...}}`` become keys of the object."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)

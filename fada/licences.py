"""What an installation is made of: libraries, weights and the data behind them, with licences.

`fada/libraries.toml` has the libraries' licences, `model/weights/MANIFEST.toml` those of weights
and data. Loads neither torch nor the model's networks; an API's image has no weights.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

_LIBRARIES = Path(__file__).with_name("libraries.toml")
_EXTRAS = ("serve", "c2pa", "otel", "tensorrt", "tensorrt-datacenter")  # what images hold
_OURS = frozenset({"fada", "fada-client", "fada-weights-extra"})
_WRITTEN_BY_PIP = ("INSTALLER", "REQUESTED", "direct_url.json")


@dataclass(frozen=True)
class Component:
    """``sha256`` of weights is that of the file; of a library that of its wheel's list of file
    hashes, see `_digest`. ``brings``: what its wheel holds of others, by name, with licences.
    ``sources``: names of the data that weights were made from."""

    kind: Literal["library", "weights", "data"]
    name: str
    version: str
    licence: str
    origin: str
    sha256: str = ""
    note: str = ""
    brings: dict[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


@cache
def components() -> tuple[Component, ...]:
    """All that is installed here, libraries first."""
    return (*_libraries(), *_weights())


def library_entries() -> dict[str, dict[str, Any]]:
    """`fada/libraries.toml`, by normalised name."""
    return tomllib.loads(_LIBRARIES.read_text())


def _libraries() -> Iterator[Component]:
    entries = library_entries()
    for name, distribution in sorted(required("fada", _EXTRAS).items()):
        entry = entries.get(name, {})
        yield Component(
            "library",
            name,
            distribution.version,
            entry.get("licence") or _said(distribution, "License-Expression") or "not known",
            entry.get("origin") or _said(distribution, "Home-page") or "not known",
            _digest(distribution),
            entry.get("note", ""),
            entry.get("brings", {}),
        )


def _said(distribution: metadata.Distribution, key: str) -> str:
    """What a package says of itself; empty if nothing."""
    return next(iter(distribution.metadata.get_all(key) or []), "")


def _weights() -> Iterator[Component]:
    try:
        from model.manifest import WEIGHTS, data_entries, weights_entries
    except ModuleNotFoundError:  # an API's image
        return
    for name, one in weights_entries().items():
        if (WEIGHTS / name).is_file():
            yield Component("weights", name, "", one.licence, f"{one.what}; {one.origin}",
                            one.sha256, sources=one.sources)  # fmt: skip
    for name, data in data_entries().items():
        yield Component("data", name, "", data.licence, f"{data.what}; {data.origin}")


def required(root: str, extras: Iterable[str]) -> dict[str, metadata.Distribution]:
    """What ``root[extras]`` needs, and all that needs, of what is installed; by normalised name.

    Markers other than extras are not evaluated: what they exclude is not installed.
    """
    installed = {normalised(d.metadata["Name"]): d for d in metadata.distributions()}
    found: dict[str, metadata.Distribution] = {}
    seen = set[tuple[str, frozenset[str]]]()
    waiting = [(root, frozenset(extras))]
    while waiting:
        one = waiting.pop()
        name, wanted = one
        if one in seen or name not in installed:
            continue
        seen.add(one)
        if name not in _OURS:
            found[name] = installed[name]
        waiting += _needs(installed[name].requires or [], wanted)
    return found


def _needs(requirements: list[str], extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in requirements:
        requirement, _, marker = text.partition(";")
        named = re.findall(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        match = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?", requirement)
        if match and (not named or not extras.isdisjoint(named)):
            more = {part.strip() for part in (match[2] or "").split(",")} - {""}
            yield normalised(match[1]), frozenset(more)


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _digest(distribution: metadata.Distribution) -> str:
    """SHA-256 over path and hash of every file of the wheel, sorted: the same on every machine.

    Files that installing adds do not count.
    """
    lines = [
        f"{path.as_posix()} {path.hash.value}"
        for path in distribution.files or []
        if path.hash is not None
        and not path.as_posix().startswith("..")
        and path.name not in _WRITTEN_BY_PIP
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() if lines else ""

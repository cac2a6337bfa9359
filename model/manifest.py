"""The manifest of the weights that ship: what each file is, its licence and its hash."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class WeightsEntry:
    """One file; ``sources`` are the `data_entries` that it was made from."""

    what: str
    sha256: str
    licence: str
    origin: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class DataEntry:
    """A data set, or others' weights, that files were made from."""

    what: str
    licence: str
    origin: str


@cache
def weights_entries() -> Mapping[str, WeightsEntry]:
    """By file name."""
    return {
        name: WeightsEntry(
            entry["what"], entry["sha256"], entry["licence"], entry["origin"], tuple(entry["from"])
        )
        for name, entry in _document()["files"].items()
    }


@cache
def data_entries() -> Mapping[str, DataEntry]:
    """By name."""
    return {name: DataEntry(**entry) for name, entry in _document()["data"].items()}


@cache
def verified(path: Path) -> Path:
    """``path``, once its content has the hash of the manifest.

    Files elsewhere than in `WEIGHTS` are the user's own and not checked. Raises ``ValueError`` for
    a shipped file without an entry, or with another hash.
    """
    if path.absolute().parent != WEIGHTS or not path.is_file():
        return path
    entry = weights_entries().get(path.name)
    if entry is None:
        raise ValueError(f"{path} has no entry in {WEIGHTS / 'MANIFEST.toml'}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise ValueError(
            f"{path}: SHA-256 = {digest}, expected {entry.sha256} (MANIFEST.toml); "
            "weights of your own belong in another folder"
        )
    return path


def _document() -> dict[str, dict[str, Any]]:
    return tomllib.loads((WEIGHTS / "MANIFEST.toml").read_text())

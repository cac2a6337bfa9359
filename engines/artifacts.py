"""Built engines on disk: what each was made of, and whether it may run here.

An artifact is a folder with a manifest and one file for each function of the network. Loading one
runs native code: the folder must be as trustworthy as the program itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FORMAT = 1  # of the manifest, and of what the functions' inputs and outputs are
MANIFEST = "manifest.json"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Manifest:
    """What an artifact was made of, for what, where, and how well it agrees.

    ``weights`` and ``code``: hashes of the parameters and of the network's source. ``machine``:
    device, its abilities and the versions of everything that it depends on. ``shapes``: one row of
    each input of the network, by name. ``files``: their SHA-256. ``parity``: batch size → the
    worst row's error as a share of the truth's spread, at most ``tolerance``; empty: not compared.
    """

    model: str
    backend: str
    precision: str
    batch: tuple[int, int]  # the least and the most rows
    weights: str
    code: str
    machine: Mapping[str, str]
    shapes: Shapes
    files: Mapping[str, str]
    tolerance: float
    parity: Mapping[str, float]

    @property
    def title(self) -> str:
        """For people: ``compiled fp32, batches 1 to 8``."""
        first, last = self.batch
        return f"{self.backend} {self.precision}, batches {first} to {last}"


@dataclass(frozen=True)
class Requirements:
    """What an artifact must have been made of to run a network here, in a manifest's words.

    ``machines``: of each backend that can run here.
    """

    weights: str
    code: str
    shapes: Shapes
    machines: Mapping[str, Mapping[str, str]]


def incompatibility(manifest: Manifest, wanted: Requirements) -> str | None:
    """Why the artifact cannot run what is wanted; None: it can."""
    if manifest.backend not in wanted.machines:
        able = ", ".join(sorted(wanted.machines)) or "nothing"
        return f"it needs {manifest.backend}, and what runs here is {able}"
    if manifest.weights != wanted.weights:
        return f"it was built of other weights, {manifest.weights[:12]}, not {wanted.weights[:12]}"
    if manifest.code != wanted.code:
        return "the network's code has changed since it was built"
    if dict(manifest.shapes) != dict(wanted.shapes):
        return _difference("inputs of other shapes", manifest.shapes, wanted.shapes)
    machine = wanted.machines[manifest.backend]
    if dict(manifest.machine) != dict(machine):
        return _difference("another machine", manifest.machine, machine)
    if manifest.batch[0] > 1:
        return f"it takes batches from {manifest.batch[0]} up, and one window must go through alone"
    if not manifest.parity:
        return "it was never compared with its network"
    worst = max(manifest.parity.values())
    if not worst <= manifest.tolerance:  # NaN, too
        return f"it is off by {worst:.2g} of the spread, more than {manifest.tolerance:.2g}"
    return None


def _difference(what: str, built: Mapping[str, object], here: Mapping[str, object]) -> str:
    parts = [
        f"{name} {built.get(name, 'nothing')}, here {here.get(name, 'nothing')}"
        for name in sorted({*built, *here})
        if built.get(name) != here.get(name)
    ]
    return f"it was built for {what}: {'; '.join(parts)}"


def verify(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the files themselves; None: nothing. Reads them all."""
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if file_hash(path) != expected:
            return f"its file {name} is damaged"
    return None


def default_folder() -> Path:
    """``FADA_ENGINES``, else ``fada/engines`` in the user's cache."""
    if named := os.environ.get("FADA_ENGINES"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fada" / "engines"


def stored(root: Path) -> Iterator[tuple[Path, Manifest | str]]:
    """Every artifact in ``root`` in order of its name, or what is wrong with its manifest."""
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        try:
            yield path.parent, read(path)
        except (ValueError, OSError) as error:
            yield path.parent, f"its manifest cannot be read: {error}"


def read(path: Path) -> Manifest:
    """Raises ``ValueError`` for a file that is no manifest of this version."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    expected = {field.name for field in fields(Manifest)}
    if set(content) != expected:
        raise ValueError(f"it has {sorted(content)}, expected {sorted(expected)}")
    try:
        return _manifest(content)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _manifest(content: dict[str, Any]) -> Manifest:
    first, last = (int(n) for n in content["batch"])
    return Manifest(
        **content
        | {
            "batch": (first, last),
            "shapes": {name: tuple(shape) for name, shape in content["shapes"].items()},
            "parity": {rows: float(error) for rows, error in content["parity"].items()},
        }
    )


def write(folder: Path, manifest: Manifest) -> None:
    text = json.dumps({"format": FORMAT} | asdict(manifest), indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n")


def key(manifest: Manifest) -> str:
    """The artifact's folder: what would answer the same request has the same one."""
    told = {
        name: value
        for name, value in asdict(manifest).items()
        if name not in ("files", "parity", "tolerance")
    }
    text = json.dumps(told, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{manifest.model}-{manifest.backend}-{manifest.precision}-{digest}"


@contextmanager
def workshop(root: Path) -> Iterator[Path]:
    """A folder beside the artifacts to build one in; what is not published is thrown away."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, root: Path, manifest: Manifest) -> Path:
    """Writes the manifest and moves the folder to its place, where it may replace another."""
    write(folder, manifest)
    folder.chmod(0o755)
    place = root / key(manifest)
    if place.exists():
        place.replace(folder.with_suffix(".old"))
        folder.replace(place)
        shutil.rmtree(folder.with_suffix(".old"))
    else:
        folder.replace(place)
    return place


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

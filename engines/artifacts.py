"""Built engines on disk: what identifies each, and whether it can run here.

An artifact is a folder with a manifest and one file for each function of the network. Loading one
runs native code: the folder must be as trustworthy as the program itself.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1  # of the manifest, and of the functions' inputs and outputs
MANIFEST = "manifest.json"
_STAGING = ".building-"
_STALE_S = 86_400
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Manifest:
    """What an artifact was built from and for, where, and how well it agrees with its network.

    ``weights`` and ``code``: `weights_hash` and `code_hash`. ``machine``: the device, its abilities
    and the versions of everything that it depends on. ``shapes``: one row of each input of the
    network, by name. ``files``: their SHA-256. ``parity``: batch size → the worst row's error as a
    share of the output's spread, at most ``tolerance``; empty: not compared.
    """

    model: str
    backend: str
    precision: str
    batch: tuple[int, int]  # the fewest and the most rows
    weights: str
    code: str
    machine: Mapping[str, str]
    shapes: Shapes
    files: Mapping[str, str]
    tolerance: float
    parity: Mapping[str, float]

    @property
    def title(self) -> str:
        """For messages: ``compiled fp32, batches 1 to 8``."""
        first, last = self.batch
        return f"{self.backend} {self.precision}, batches {first} to {last}"


@dataclass(frozen=True)
class Requirements:
    """What the manifest of an artifact must contain for it to run a network here.

    ``machines``: of each backend that can run here.
    """

    weights: str
    code: str
    shapes: Shapes
    machines: Mapping[str, Mapping[str, str]]


def incompatibility(manifest: Manifest, required: Requirements) -> str | None:
    """Why the artifact does not meet the requirements; None: it does."""
    machine = required.machines.get(manifest.backend)
    if machine is None:
        available = ", ".join(sorted(required.machines)) or "none"
        return f"it needs {manifest.backend}, available here: {available}"
    if manifest.weights != required.weights:
        built, here = manifest.weights[:12], required.weights[:12]
        return f"it was built from other weights: {built}, here {here}"
    if manifest.code != required.code:
        return "the network's code has changed since it was built"
    if dict(manifest.shapes) != dict(required.shapes):
        return _difference("inputs of other shapes", manifest.shapes, required.shapes)
    if dict(manifest.machine) != dict(machine):
        return _difference("another machine", manifest.machine, machine)
    if manifest.batch[0] > 1:
        return f"its smallest batch is {manifest.batch[0]}, expected 1"
    if not manifest.parity:
        return "it was never compared with its network"
    worst = max(manifest.parity.values())
    if not worst <= manifest.tolerance:  # or NaN
        return f"its error is {worst:.2g} of the spread, expected at most {manifest.tolerance:.2g}"
    return None


def _difference(what: str, built: Mapping[str, object], here: Mapping[str, object]) -> str:
    parts = [
        f"{name} {built.get(name, 'missing')}, here {here.get(name, 'missing')}"
        for name in sorted({*built, *here})
        if built.get(name) != here.get(name)
    ]
    return f"it was built for {what}: {'; '.join(parts)}"


def verify(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the files of an artifact; None: nothing. Reads them all."""
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if file_hash(path) != expected:
            return f"its file {name} is damaged"
    return None


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of all parameters and buffers that a file of weights holds.

    Equal in half and in single precision, since loaders may hold the same file in either.
    """
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        plain = plain.float() if plain.is_floating_point() else plain
        digest.update(plain.numpy().view(np.uint8).data)
    return digest.hexdigest()


def code_hash(net: nn.Module) -> str:
    """SHA-256 of the network's config and of the source files of its classes and of the export."""
    files = {Path(__file__).with_name("export.py")}
    for module in net.modules():
        if not type(module).__module__.startswith("torch."):
            files.add(Path(str(inspect.getsourcefile(type(module)))))
    digest = hashlib.sha256(repr(getattr(net, "config", None)).encode())
    for content in sorted(path.read_bytes() for path in files):
        digest.update(content)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_folder() -> Path:
    """``FADA_ENGINES``, else ``fada/engines`` in the user's cache."""
    if named := os.environ.get("FADA_ENGINES"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fada" / "engines"


def stored(root: Path) -> Iterator[tuple[Path, Manifest | str]]:
    """Every artifact in ``root`` by name, with its manifest or what is wrong with that."""
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        try:
            yield path.parent, read(path)
        except (ValueError, OSError) as error:
            yield path.parent, f"its manifest cannot be read: {error}"


def read(path: Path) -> Manifest:
    """Raises ``ValueError`` for a file that is no manifest of this `FORMAT`."""
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
    """The name of an artifact's folder: what would answer the same request has the same name."""
    identity = {
        name: value
        for name, value in asdict(manifest).items()
        if name not in ("files", "parity", "tolerance")
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return f"{manifest.model}-{manifest.backend}-{manifest.precision}-{digest}"


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A folder in ``root`` to build an artifact in; deleted unless it is published."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clean(root: Path) -> None:
    """Delete what builds left that were killed: staging folders more than a day old."""
    for folder in root.glob(f"{_STAGING}*"):
        if time.time() - folder.stat().st_mtime > _STALE_S:
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

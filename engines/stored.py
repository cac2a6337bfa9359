"""What an earlier start chose for a motion student: the next needs neither torch nor the network.

Only for OpenVINO, where no GPU could serve instead.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from engines.openvino import OpenVINONet
from model.diffusion.arrays import to_numpy
from model.diffusion.cached_context import CachedContext
from model.types import pack, unpack

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # in containers as well
# Of what the engine gave for the example when it was chosen: a damaged file is off by more.
_TOLERANCE = 1e-2
_PACKAGES = ("openvino", "torch", "numpy")
_SOURCES = ("engines", "model/diffusion", "model/motion", "model/audio")
_ROOT = Path(__file__).parents[1]
_log = logging.getLogger(__name__)


def load(weights: Path, root: Path) -> CachedContext[Any] | None:
    """The engine that `keep` noted in ``root`` for the student in the file ``weights``.

    It takes numpy's arrays. None without a note, or where the engine no longer gives what it gave.
    """
    record = _record(weights, root)
    if NVIDIA_DRIVER.exists() or not record.is_file():
        return None
    try:
        arrays, values = unpack(record.read_bytes())
        engine = CachedContext(_net(root, values))
        truth, rows = arrays.pop("truth"), arrays
        for count in (len(truth), 1):
            error = np.abs(_predict(engine, rows, count) - truth[:count]).max()
            if not error < _TOLERANCE:
                raise ValueError(f"it is off by {error:.2g}, expected below {_TOLERANCE}")
    except Exception as error:  # OpenVINO raises errors of any type
        _log.warning("choosing the engine of %s again: %s", weights.name, error)
        return None
    _log.info("using engine openvino %s: an earlier start chose it", values["precision"])
    return engine


def keep(weights: Path, root: Path, engine: CachedContext[Any], rows: Mapping[str, Any]) -> None:
    """Note in ``root`` that ``engine`` is the best here for the student in the file ``weights``.

    ``rows``: an example of all its inputs. Notes nothing of an engine that is not on disk.
    """
    net = engine.net
    if not isinstance(net, OpenVINONet) or NVIDIA_DRIVER.exists():
        return
    files = [path for path in net.models.values() if isinstance(path, Path)]
    if len(files) < len(net.models):
        return
    arrays = {name: to_numpy(x) for name, x in rows.items()}
    values: dict[str, object] = {
        "folder": files[0].parent.name,
        "names": list(net.names),
        "threads": net.threads,
        "precision": net.precision,
    }
    truth = _predict(engine, arrays, len(arrays["t"]))
    record = _record(weights, root)
    partial = record.with_suffix(".partial")
    try:
        partial.write_bytes(pack({**arrays, "truth": truth}, values))
        partial.replace(record)
    except OSError as error:  # such as a file system that is read-only
        _log.info("the choice of an engine is not kept: %s", error)


def _net(root: Path, values: Mapping[str, Any]) -> OpenVINONet:
    folder = root / values["folder"]
    models = {path.stem: path for path in folder.glob("*.xml")}
    return OpenVINONet(
        models,
        tuple(values["names"]),
        threads=values["threads"],
        precision=values["precision"],
    )


def _predict(engine: CachedContext[Any], rows: Mapping[str, Any], count: int) -> Any:
    some = {name: x[:count] for name, x in rows.items()}
    return engine(some.pop("x_t"), some.pop("t"), some)


def _record(weights: Path, root: Path) -> Path:
    """Its name has all that the choice depends on: weights, code, versions and processor."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for folder in _SOURCES:
        for source in sorted((_ROOT / folder).glob("*.py")):
            digest.update(source.read_bytes())
    versions = [metadata.version(package) for package in _PACKAGES]
    digest.update(repr((versions, platform.machine(), _processor())).encode())
    return root / f"chosen-{digest.hexdigest()[:16]}"


def _processor() -> list[str]:
    """The abilities of the first core, as Linux lists them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return sorted({line for line in lines if line.startswith(("flags", "Features"))})

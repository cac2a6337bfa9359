"""What an engine depends on besides its request: parameters, source code, machine, versions."""

from __future__ import annotations

import hashlib
import inspect
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from engines import export

Machine = dict[str, str]
# Of a backend's packages any one must be installed; all that are count. The fastest backend first.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_rtx"),
    "compiled": ("torch",),
}
_DEVICES: Mapping[str, tuple[str, ...]] = {"tensorrt": ("cuda",), "compiled": ("cpu", "cuda")}
BACKENDS = tuple(_PACKAGES)


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of all parameters and buffers that a file of weights holds.

    The same in half as in single precision, in which loaders may hold the same file.
    """
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        plain = plain.float() if plain.is_floating_point() else plain
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def code_hash(net: nn.Module) -> str:
    """SHA-256 of the network's sizes, and of the source of every class of its own that it is of."""
    files = {Path(str(inspect.getsourcefile(export)))}
    for module in net.modules():
        if not type(module).__module__.startswith("torch."):
            files.add(Path(str(inspect.getsourcefile(type(module)))))
    digest = hashlib.sha256(repr(getattr(net, "config", None)).encode())
    for content in sorted(path.read_bytes() for path in files):
        digest.update(content)
    return digest.hexdigest()


def device_for(backend: str) -> torch.device:
    """Where the engines of a backend run here: on a GPU if there is one."""
    gpu = torch.cuda.is_available() or "cpu" not in _DEVICES[backend]
    return torch.device("cuda" if gpu else "cpu")


def machines() -> dict[str, Machine]:
    """Of each backend that can run here, where it would."""
    found = {name: machine(name, device_for(name)) for name in BACKENDS}
    return {name: about for name, about in found.items() if about is not None}


def machine(backend: str, device: torch.device) -> Machine | None:
    """Where an engine of ``backend`` would run; None: it cannot, here.

    Compiled code is for this very processor: its abilities are told even beside a GPU.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}, expected one of {', '.join(BACKENDS)}")
    versions = {name: _version(name) for name in _PACKAGES[backend]}
    found = {name: version for name, version in versions.items() if version is not None}
    if not found or device.type not in _DEVICES[backend]:
        return None
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    about = {"system": f"{platform.system()} {platform.machine()}", "device": device.type}
    if device.type == "cuda":
        about |= {
            "gpu": torch.cuda.get_device_name(device),
            "capability": ".".join(str(n) for n in torch.cuda.get_device_capability(device)),
            "cuda": str(torch.version.cuda),
        }
    if backend == "compiled":
        about["processor"] = _abilities(torch.cpu.get_capabilities())
    return about | found | {"torch": torch.__version__}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _abilities(known: Mapping[str, object]) -> str:
    """The instructions that the processor has, not its size or how many of it there are."""
    return " ".join(sorted(name for name, able in known.items() if able is True))

"""Parameters from files into networks, and this project's own files of video networks.

A network is built on the meta device, without memory, and takes the file's tensors as its
parameters. These are views of the mapped file where no other precision is asked for, and else
copies made one by one; either way loading needs little more memory than the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.video.config import FaceLocatorConfig, TinyConfig, UNetConfig, VAEConfig, from_plain
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.tiny import TinyNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.weights_file import half, read_header, renamed, write_weights

Net = TypeVar("Net", bound=nn.Module)
VideoNet = DenoisingUNet | ReferenceUNet | FaceLocator | VAE | TinyNet
_NAMED = 8  # keys that an error names; the rest are counted
_REMAPPED_BYTES = 128 * 2**20


Rules = tuple[tuple[str, str], ...]  # (foreign, own) keys, # for any number, in order


class Renamer:
    """Foreign key ↔ own key by ``rules``; the default has none: files with own keys."""

    def __init__(self, rules: Rules = ()) -> None:
        self._keep = not rules
        self._own = [(_pattern(a), _template(b)) for a, b in rules]
        self._foreign = [(_pattern(b), _template(a)) for a, b in rules]

    def own(self, key: str) -> str:
        """Raises ``ValueError`` that names a key which no rule knows."""
        return key if self._keep else _renamed(key, self._own)

    def foreign(self, key: str) -> str:
        """Raises ``ValueError`` for a key that only this project's networks have."""
        return key if self._keep else _renamed(key, self._foreign)

    def known_as(self, key: str) -> str:
        """The foreign key where there is one, else ``key`` itself: for messages."""
        try:
            return self.foreign(key)
        except ValueError:
            return key


def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(re.escape(rule).replace(r"\#", r"(\d+)"))


def _template(rule: str) -> str:
    return rule.replace("#", "{}")


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, template in rules:
        if match := pattern.fullmatch(key):
            return template.format(*match.groups())
    raise ValueError(f"unknown key {key!r}")


def on_meta(build: Callable[[], Net]) -> Net:
    """What ``build`` makes, with shapes but no memory: fill it before use."""
    with torch.device("meta"):
        return build()


class _SafeTensors(Mapping[str, Tensor]):
    """A safetensors file, read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        self._file = cast(Any, safe_open(path, framework="pt"))  # its stubs are untyped
        self._keys = dict.fromkeys(str(key) for key in self._file.keys())  # noqa: SIM118

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        return torch.as_tensor(self._file.get_tensor(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class _Mapped(Mapping[str, Any]):
    """A mapped file that is mapped again after every `_REMAPPED_BYTES` read.

    Pages that were read stay resident as long as their mapping does; without this, a caller that
    copies the tensors would hold the whole file beside the copies.
    """

    def __init__(self, open_file: Callable[[], Mapping[str, Any]]) -> None:
        self._open_file = open_file
        self._content, self._read_bytes = open_file(), 0

    def __getitem__(self, key: str) -> Any:
        if self._read_bytes > _REMAPPED_BYTES:
            self._content, self._read_bytes = self._open_file(), 0
        value = self._content[key]
        self._read_bytes += value.nbytes if isinstance(value, Tensor) else 0
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


class _Renamed(Mapping[str, Tensor]):
    """``tensors`` under their new names, see `renamed`; still read one by one."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._keys = {renamed(names, key): key for key in tensors}

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[self._keys[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def read_tensors(path: Path) -> Mapping[str, Any]:
    """What a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file names: mapped, not read.

    Nothing but tensors and plain values is unpickled. Raises ``ValueError`` for a file that is
    missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        return _Mapped(lambda: _SafeTensors(path))

    def load() -> Mapping[str, Any]:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, expected named tensors")
        return content

    return _Mapped(load)


def fill(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    renamer: Renamer | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Makes ``tensors`` the parameters of ``net``, which is then in evaluation mode and frozen.

    ``renamer`` takes keys of ``tensors`` to those of ``net`` and back. ``dtype`` None keeps each
    tensor's precision. Raises ``ValueError`` that names, as ``tensors`` would, every key that is
    missing, surplus or of another shape; ``net`` is then unchanged.
    """
    renamer = renamer or Renamer()
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    named: dict[str, str] = {}
    problems = []
    for key in tensors:
        try:
            name = renamer.own(key)
        except ValueError:
            name = ""
        if name not in expected:
            problems.append(f"surplus {key}")
        elif name in named:
            problems.append(f"surplus {key}, the same as {named[name]}")
        else:
            named[name] = key
    missing = [name for name in expected if name not in named]
    problems += [f"missing {renamer.known_as(name)}" for name in missing]
    values: dict[str, Tensor] = {}
    for name, key in named.items():
        value = tensors[key]
        if tuple(value.shape) != expected[name]:
            problems.append(f"{key} has shape {tuple(value.shape)}, expected {expected[name]}")
        elif not problems:
            values[name] = value if dtype is None else value.to(dtype)
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ValueError(f"these weights do not fit: {'; '.join(problems[:_NAMED])}{more}")
    net.load_state_dict(values, assign=True)
    net.eval().requires_grad_(False)


# Parts and sizes of video-tiny were renamed after the shipped files were written.
_OLD_NAMES = {
    "sound": "audio_encoder",
    "sound_layers": "audio_layers",
    "sound_tokens": "audio_tokens",
}
_KINDS: dict[str, tuple[type[VideoNet], type]] = {
    "denoising_unet": (DenoisingUNet, UNetConfig),
    "reference_unet": (ReferenceUNet, UNetConfig),
    "face_locator": (FaceLocator, FaceLocatorConfig),
    "vae": (VAE, VAEConfig),
    "video_tiny": (TinyNet, TinyConfig),
}


def save_net(path: Path, net: VideoNet, metadata: Mapping[str, object]) -> None:
    """One network in half precision, with its sizes and ``metadata`` (plain values) beside it."""
    kind = next(name for name, (cls, _) in _KINDS.items() if type(net) is cls)
    header = {"kind": kind, "config": asdict(net.config), "metadata": metadata}
    write_weights(path, half(net), header)


def load_net(path: Path, dtype: torch.dtype | None = None) -> tuple[VideoNet, dict[str, object]]:
    """What `save_net` wrote: the network and its metadata. ``dtype`` None: half precision.

    Raises ``ValueError`` for a file that is missing or holds something else.
    """
    header = read_header(path)
    if header.get("kind") not in _KINDS:
        raise ValueError(
            f"{path} holds {header.get('kind')!r}, expected one of {', '.join(_KINDS)}"
        )
    cls, config_cls = _KINDS[header["kind"]]
    sizes = {renamed(_OLD_NAMES, name): value for name, value in header["config"].items()}
    config: Any = from_plain(config_cls, sizes)
    net: VideoNet = on_meta(lambda: cls(config))
    fill(net, _Renamed(_Mapped(lambda: _SafeTensors(path)), _OLD_NAMES), dtype=dtype)
    return net, header.get("metadata", {})

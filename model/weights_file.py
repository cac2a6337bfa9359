"""Files of trained networks: one safetensors file each, with sizes and metadata in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from model.manifest import verified
from model.types import ScaleLimits

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_GUIDANCE = (2.0, 1.0)  # audio, reference: judged best
_OLD_KEYS = {"facts": "metadata"}  # in files written before the key was renamed


def weights_metadata(
    role: str, steps: int, trained_steps: int, *, limits: ScaleLimits | None = None
) -> dict[str, object]:
    """Metadata of a file: the sampler's ``steps``, default ``guidance`` [audio, reference] and,
    for a student with CFG tokens, the ``limits`` of the scales that it was distilled in."""
    metadata: dict[str, object] = {
        "role": role,
        "steps": steps,
        "guidance": list(DEFAULT_GUIDANCE),
        "trained_steps": trained_steps,
    }
    if limits is not None:
        metadata["limits"] = [list(side) for side in limits]
    return metadata


def write_weights(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """``tensors`` as they are; ``header`` values are stored as JSON, strings plainly."""
    from safetensors.torch import save_file

    text = {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in header.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, text)


def half(net: nn.Module) -> dict[str, Tensor]:
    """The parameters in half precision, which halves the file and changes no measured figure."""
    return {name: value.half() for name, value in net.state_dict().items()}


def read_header(path: Path) -> dict[str, Any]:
    """What `write_weights` stored beside the tensors; empty for another program's file.

    Raises ``ValueError`` for a file that is missing, no safetensors file, or shipped and changed.
    """
    if not verified(path).is_file():
        raise ValueError(f"no weights at {path}")
    try:
        with safe_open(path, framework="np") as file:
            text = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    named = {_OLD_KEYS.get(key, key): value for key, value in text.items()}
    return {
        key: json.loads(value) if key in ("config", "metadata") else value
        for key, value in named.items()
    }


def renamed(names: Mapping[str, str], key: str) -> str:
    """``key`` with its first part, as far as the first dot, replaced as ``names`` say."""
    first, dot, rest = key.partition(".")
    return names.get(first, first) + dot + rest

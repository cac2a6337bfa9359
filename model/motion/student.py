"""What a motion student is beside its network: a file's small values, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from model.diffusion.arrays import Array
from model.portrait.blendshapes import MOTION_DIM
from model.weights_file import read_header


@dataclass(frozen=True)
class MotionStudent:
    """``guided``: it takes CFG tokens; ``mean``, ``std`` (58,) of its latents, physical units.

    ``metadata`` are plain values kept in the file's header, see `weights_metadata`.
    """

    guided: bool
    mean: Array
    std: Array
    metadata: dict[str, object]


def read_student(path: Path) -> MotionStudent:
    """In numpy's arrays. Raises ``ValueError`` for a file that is missing or of another kind."""
    header = read_header(path)
    config = header.get("config")
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        if config is None or not {"mean", "std"} <= names:
            raise ValueError(f"{path} holds no motion network: {sorted(header)}")
        mean, std = file.get_tensor("mean"), file.get_tensor("std")
    if mean.shape != (MOTION_DIM,):
        raise ValueError(f"{path} holds no motion network: {sorted(header)}")
    return MotionStudent(bool(config.get("guided")), mean, std, header.get("metadata", {}))

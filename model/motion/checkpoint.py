"""One trained motion network in one safetensors file: parameters, normalisation, metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.motion.network import MotionNet, NetConfig
from model.motion.student import MotionStudent
from model.portrait.blendshapes import MOTION_DIM
from model.weights_file import half, read_header, renamed, write_weights

# Parameters were renamed after the shipped files were written.
_OLD_NAMES = {
    "audio": "audio_encoder",
    "aligned": "audio_proj",
    "heard": "audio_to_motion",
    "spoken": "viseme_head",
}


@dataclass(frozen=True)
class MotionWeights:
    """A network and its latents' normalisation.

    ``metadata`` are plain values kept in the file's header, see `weights_metadata`.
    """

    net: MotionNet
    mean: Tensor  # (58,) of the latents, physical units
    std: Tensor  # (58,)
    metadata: dict[str, object]
    file: Path | None = None  # where it was read from

    @property
    def student(self) -> MotionStudent:
        """All but the network."""
        return MotionStudent(self.net.config.guided, self.mean, self.std, self.metadata)


def save_weights(path: Path, weights: MotionWeights) -> None:
    """Writes the parameters in half precision."""
    tensors = {f"net.{name}": value for name, value in half(weights.net).items()}
    tensors |= {"mean": weights.mean.float(), "std": weights.std.float()}
    header = {"config": asdict(weights.net.config), "metadata": weights.metadata}
    write_weights(path, tensors, header)


def load_weights(path: Path) -> MotionWeights:
    """The network in evaluation mode, single precision, on the CPU.

    Raises ``ValueError`` for a file that is missing or holds something else.
    """
    header = read_header(path)
    tensors = {name: value.float() for name, value in load_file(path).items()}
    if "config" not in header or tensors.get("mean", torch.empty(0)).shape != (MOTION_DIM,):
        raise ValueError(f"{path} holds no motion network: {sorted(header)}")
    net = MotionNet(NetConfig(**header["config"]))
    parameters = {
        renamed(_OLD_NAMES, name.removeprefix("net.")): value
        for name, value in tensors.items()
        if name.startswith("net.")
    }
    net.load_state_dict(parameters)
    net.eval().requires_grad_(False)
    mean, std = (tensors[name].clone() for name in ("mean", "std"))  # or the file stays mapped
    return MotionWeights(net, mean, std, header.get("metadata", {}), path)

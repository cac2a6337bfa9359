"""One trained motion network in one safetensors file: parameters, normalisation, facts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.motion.network import MotionNet, NetConfig
from model.portrait.blendshapes import MOTION_DIM
from model.types import ScaleLimits

DEFAULT_GUIDANCE = (2.0, 1.0)  # audio, reference: what reads best


@dataclass(frozen=True)
class MotionWeights:
    """A network with what is needed to use it.

    ``facts`` are plain values kept in the file's metadata, see `weights_facts`.
    """

    net: MotionNet
    mean: Tensor  # (58,) of the latents, physical units
    std: Tensor  # (58,)
    facts: dict[str, object]


def weights_facts(
    role: str, steps: int, trained_steps: int, limits: ScaleLimits | None = None
) -> dict[str, object]:
    """What a file says beside its parameters: the sampler's ``steps``, default ``guidance``
    [audio, reference] and, of a student that takes the scales as tokens, the ``limits`` that it
    was distilled in."""
    facts: dict[str, object] = {
        "role": role,
        "steps": steps,
        "guidance": list(DEFAULT_GUIDANCE),
        "trained_steps": trained_steps,
    }
    if limits is not None:
        facts["limits"] = [list(side) for side in limits]
    return facts


def save_weights(path: Path, weights: MotionWeights) -> None:
    """Writes half-precision parameters (the file is half as large; no figure changes)."""
    tensors = {f"net.{k}": v.half().contiguous() for k, v in weights.net.state_dict().items()}
    tensors |= {"mean": weights.mean.float(), "std": weights.std.float()}
    config = json.dumps(asdict(weights.net.config), sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"config": config, "facts": json.dumps(weights.facts)})


def load_weights(path: Path) -> MotionWeights:
    """The network in evaluation mode, single precision, on the CPU.

    Raises ``ValueError`` for a file that is missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if "config" not in metadata or tensors.get("mean", torch.empty(0)).shape != (MOTION_DIM,):
        raise ValueError(f"{path} holds no motion network: {sorted(metadata)}")
    net = MotionNet(NetConfig(**json.loads(metadata["config"])))
    net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
    net.eval().requires_grad_(False)
    facts = json.loads(metadata["facts"])
    return MotionWeights(net, tensors["mean"], tensors["std"], facts)

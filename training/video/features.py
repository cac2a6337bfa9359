"""MobileNetV2's view of a frame (arXiv 1801.04381): where the Fréchet distance is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.video.weights import fill, on_meta

Pictures = NDArray[np.uint8]
SIDE = 128  # pixels that frames are enlarged to
DIMENSIONS = 48  # axes along which real frames differ most
# expansion, width, blocks, stride
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_WIDTH = 1280
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _conv(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(width_in, width, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    )


class _Inverted(nn.Module):
    def __init__(self, width_in: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * width_in
        widen = [] if expansion == 1 else [_conv(width_in, inner, 1)]
        self.conv = nn.Sequential(
            *widen,
            _conv(inner, inner, 3, stride, inner),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self._joined = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(x + self.conv(x) if self._joined else self.conv(x))


class MobileNetV2(nn.Module):
    """The network without its classes: pictures → pooled features."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [_conv(3, 32, 3, 2)]
        width = 32
        for expansion, wide, blocks, stride in _STAGES:
            for k in range(blocks):
                parts.append(_Inverted(width, wide, expansion, stride if k == 0 else 1))
                width = wide
        self.features = nn.Sequential(*parts, _conv(width, _WIDTH, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W), 0 … 1 → (N, 1280)."""
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1).to(pixels) for v in (_MEAN, _STD))
        return torch.as_tensor(self.features((pixels - mean) / std).mean((2, 3)))


def load_mobilenet(path: Path) -> MobileNetV2:
    """torchvision's ``mobilenet_v2-….pth``. Raises ``ValueError`` for any other file."""
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    # not mapped: the file that is about is of torch's first format
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    net = on_meta(MobileNetV2)
    fill(net, {k: v for k, v in tensors.items() if not k.startswith("classifier.")})
    return net


class FrameFeatures:
    """Frames on the axes along which the real ones differ most."""

    def __init__(self, net: MobileNetV2, real: Sequence[Pictures]) -> None:
        self._net = net
        rows = self._rows(real)
        self._mean = rows.mean(0)
        _, _, axes = np.linalg.svd(rows - self._mean, full_matrices=False)
        self._axes = axes[:DIMENSIONS].T

    def __call__(self, videos: Sequence[Pictures]) -> NDArray[np.float64]:
        """(frames of all, `DIMENSIONS`)."""
        return np.asarray((self._rows(videos) - self._mean) @ self._axes)

    def _rows(self, videos: Sequence[Pictures]) -> NDArray[np.float64]:
        rows = []
        for video in videos:
            large = np.stack([cv2.resize(p, (SIDE, SIDE)) for p in video[::2]])
            pixels = torch.from_numpy(large).permute(0, 3, 1, 2).float() / 255.0
            with torch.inference_mode():
                rows.append(self._net(pixels).numpy())
        return np.concatenate(rows).astype(np.float64)

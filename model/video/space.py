"""The video latent spaces: a portrait as a reference, latents of a square as frames.

Joins the face tracker, the framing and a codec (an autoencoder, or patches of pixels) behind
`LatentSpace`; `ReferenceEncoder` turns a reference into the denoising UNet's conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.portrait.face_tracker import FaceTracker
from model.portrait.framing import MAX_SIZE, Frame, frame
from model.portrait.reference import TrackedPortrait
from model.types import Colour, Floats, Picture, Reference
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet

View = Literal["portrait", "face"]

MASK_GROWTH = 0.1  # of the face's box, on each side: EchoMimic's own
SEAM = 0.06  # of the square's side, where it blends into the picture
DECODED_AT_ONCE = 4  # frames
# GRID's face crops, measured on 14 clips: the side in widths and in heights of the 478 points' box,
# and how far above the box's centre the crop's lies, in sides.
FACE_WIDTHS, FACE_HEIGHTS, FACE_ABOVE = 1.61, 1.23, 0.018


class Codec(Protocol):
    """Pixels (N, 3, H, W) in -1 … 1 ↔ latents (N, C, H / stride, W / stride)."""

    @property
    def stride(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PreparedSquare:
    """What latents of a square are drawn with.

    ``picture`` (H, W, 3) RGB; ``portrait``: its portrait framing at `MAX_SIZE`; ``square``: what
    the networks see of it; ``face`` (5,): see `masked_box`.
    """

    picture: Picture
    portrait: Frame
    square: Frame
    face: NDArray[np.int32]

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """As a `Reference` keeps it."""
        return {
            "picture": self.picture,
            "portrait": np.array([*self.portrait.corner, self.portrait.scale], np.float32),
            "square": np.array([*self.square.corner, self.square.scale], np.float32),
            "face": self.face,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> PreparedSquare:
        """The inverse of `to_arrays`."""
        face = arrays["face"].astype(np.int32, copy=False)
        return cls(
            picture=arrays["picture"].astype(np.uint8, copy=False),
            portrait=_square_frame(arrays["portrait"], MAX_SIZE),
            square=_square_frame(arrays["square"], int(face[4])),
            face=face,
        )


def _square_frame(kept: NDArray[np.generic], side: int) -> Frame:
    x, y, scale = (float(v) for v in kept)
    return Frame((x, y), scale, side, side)


def masked_box(reference: Reference) -> NDArray[np.int32]:
    """(5,): x0, y0, x1, y1 of the face locator's mask in the square, and the square's side."""
    return reference.arrays["face"].astype(np.int32, copy=False)


class VideoSpace:
    """A frame's latent is (C · h · w,): the codec's, of a square around the face."""

    parts_background = False

    def __init__(
        self,
        codec: Codec,
        side: int,
        name: str = "video",
        *,
        view: View = "portrait",
        device: torch.device | None = None,
        threads: int = 1,
    ) -> None:
        """``side``: pixels of the square that the networks see (512 in EchoMimic), on ``device``.

        ``view``: the square is that of ``portrait`` framing, or close around the ``face``. ``name``
        distinguishes spaces whose latents are not interchangeable.
        """
        stride = codec.stride
        if side < 1 or side % stride:
            raise ValueError(f"side = {side}, expected a multiple of {stride}")
        self.name, self.side = name, side
        self._codec, self._view = codec, view
        self._device = device or torch.device("cpu")
        self.latent_shape = (codec.latent_channels, side // stride, side // stride)
        self.dim = int(np.prod(self.latent_shape))
        self._tracker = FaceTracker(threads)

    def encode_reference(self, picture: Picture) -> Reference:
        """``picture`` (H, W, 3) RGB → its reference. Raises `NoFaceError`.

        ``features`` are the square's latent. `ReferenceEncoder` derives the reference UNet's
        features from it where they are used, so a stored avatar takes 64 KB and not 23 MB.
        """
        tracked = TrackedPortrait.of(picture, self._tracker)
        kept, landmarks = tracked.picture, tracked.face.landmarks
        height, width = kept.shape[:2]
        portrait = frame(
            "portrait",
            MAX_SIZE,
            width=width,
            height=height,
            landmarks=landmarks,
            person=tracked.person.whole,
        )
        square = Frame(portrait.corner, portrait.scale * self.side / MAX_SIZE, self.side, self.side)
        if self._view == "face":
            square = face_square(landmarks, self.side)
        with torch.inference_mode():
            latent = self._codec.encode(self._pixels(square.cut(kept, 0)))[0]
        face = _face_box(square.place(landmarks), self.side)
        prepared = PreparedSquare(kept, portrait, square, face)
        features = latent.float().cpu().numpy().reshape(-1)
        return tracked.reference(self.name, features, prepared.to_arrays())

    def rest_prefix(self, frames: int) -> Floats:
        """(frames, D) zeros: no past is known yet."""
        return np.zeros((frames, self.dim), np.float32)

    def decoder(
        self, reference: Reference, size: int, framing: str, *, background: Colour | None = None
    ) -> VideoDecoder:
        """Prepare to draw. Raises ``ValueError`` for another space's reference or a bad option."""
        if background is not None:
            raise ValueError(f"background = {background}, expected none: pictures are drawn whole")
        reference.expect(self.name)
        prepared = PreparedSquare.from_arrays(reference.arrays)
        target = _target(prepared, size, framing)
        around = None
        if framing == "full" or self._view == "face":
            around = _Around(prepared.picture, target, prepared.square)
        return VideoDecoder(
            self._codec, target, around, latent_shape=self.latent_shape, device=self._device
        )

    def _pixels(self, square: NDArray[np.generic]) -> Tensor:
        """(H, W, 3) 0 … 255 → (1, 3, H, W), -1 … 1."""
        pixels = torch.from_numpy(np.ascontiguousarray(square, np.float32))
        return pixels.permute(2, 0, 1)[None].to(self._device) / 127.5 - 1.0


def face_square(landmarks: Floats, side: int) -> Frame:
    """The square of ``side`` pixels around a face (478, 3), cut as GRID's crops are."""
    low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
    width, height = (float(v) for v in high - low)
    wide = (FACE_WIDTHS * width + FACE_HEIGHTS * height) / 2.0
    x, y = (float(v) - wide / 2.0 for v in (low + high) / 2.0)
    return Frame((x, y - FACE_ABOVE * wide), side / wide, side, side)


def _target(prepared: PreparedSquare, size: int, framing: str) -> Frame:
    """The frame to draw; portrait framing was chosen by `VideoSpace.encode_reference`."""
    height, width = prepared.picture.shape[:2]
    no_face, whole = np.zeros((1, 3), np.float32), np.ones((1, 1), np.float32)
    if framing == "portrait":
        checked = frame(
            "full", size, width=size, height=size, landmarks=no_face, person=whole
        )  # raises for a bad size
        portrait = prepared.portrait
        scale = portrait.scale * size / MAX_SIZE
        return Frame(portrait.corner, scale, checked.width, checked.height)
    return frame(framing, size, width=width, height=height, landmarks=no_face, person=whole)


class VideoDecoder:
    """Draws latents at one size: the square itself, or within its picture (``around``)."""

    def __init__(
        self,
        codec: Codec,
        target: Frame,
        around: _Around | None,
        *,
        latent_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.width, self.height = target.width, target.height
        self._codec, self._device, self._latent_shape = codec, device, latent_shape
        self._around = around

    def decode(self, latents: Floats) -> Iterator[Picture]:
        """``latents`` (T, D) → T frames (height, width, 3) RGB."""
        shaped = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(self._device)
        shaped = shaped.reshape(-1, *self._latent_shape)
        for start in range(0, shaped.shape[0], DECODED_AT_ONCE):
            with torch.inference_mode():
                pixels = self._codec.decode(shaped[start : start + DECODED_AT_ONCE])
                squares = ((pixels.float() + 1.0) * 127.5).round().clamp(0, 255)
                drawn = squares.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            for square in drawn:
                yield self._place(np.ascontiguousarray(square))

    def _place(self, square: Picture) -> Picture:
        if self._around is not None:
            return self._around.put(square)
        if square.shape[:2] == (self.height, self.width):
            return square
        shrinks = self.width < square.shape[1]
        way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return cv2.resize(square, (self.width, self.height), interpolation=way).astype(np.uint8)


class _Around:
    """The picture around the square, which is blended in along its border."""

    def __init__(self, picture: Picture, target: Frame, square: Frame) -> None:
        self._picture = np.rint(target.cut(picture, 0)).clip(0, 255).astype(np.uint8)
        self._size = (target.width, target.height)
        side = square.width
        zoom = target.scale / square.scale
        # Shrink by area first, so that the warp only translates.
        self._side = max(1, min(side, round(side * zoom)))
        zoom *= side / self._side
        self._grows = zoom > 1.5
        half = 0.5 * zoom - 0.5  # pixel centres
        x, y = (inner - outer for inner, outer in zip(square.corner, target.corner, strict=True))
        self._matrix = np.array(
            [
                [zoom, 0.0, x * target.scale + half],
                [0.0, zoom, y * target.scale + half],
            ]
        )
        edge = np.minimum(np.arange(side) + 0.5, np.arange(side)[::-1] + 0.5) / (SEAM * side)
        ramp = np.clip(np.minimum.outer(edge, edge), 0.0, 1.0).astype(np.float32)
        share = self._warp(ramp).clip(0.0, 1.0)
        # Blend only within the square.
        top, bottom = _extent(share.max(axis=1))
        left, right = _extent(share.max(axis=0))
        self._part = slice(top, bottom), slice(left, right)
        self._matrix[:, 2] -= (left, top)
        self._size = (right - left, bottom - top)
        self._share = share[self._part][..., None]
        self._under = self._picture[self._part].astype(np.float32)

    def put(self, square: Picture) -> Picture:
        warped = self._warp(square.astype(np.float32))
        mixed = self._under + self._share * (warped - self._under)
        drawn = self._picture.copy()
        drawn[self._part] = np.rint(mixed).clip(0, 255)
        return drawn

    def _warp(self, image: Floats) -> Floats:
        if image.shape[0] != self._side:
            image = cv2.resize(image, (self._side, self._side), interpolation=cv2.INTER_AREA)
        way = cv2.INTER_CUBIC if self._grows else cv2.INTER_LINEAR
        drawn = cv2.warpAffine(image, self._matrix, self._size, flags=way)
        return drawn.astype(np.float32)


def _extent(shares: Floats) -> tuple[int, int]:
    """From the first that is not zero to after the last; the first one where all are."""
    places = np.flatnonzero(shares)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 1)


class ReferenceEncoder:
    """A reference → the denoising UNet's conditions that stay the same for all its windows.

    One pass of reference UNet and face locator; the result is worth keeping a session long.
    """

    def __init__(
        self,
        reference_unet: ReferenceUNet,
        face_locator: FaceLocator,
        latent_shape: tuple[int, int, int],
    ) -> None:
        self._unet, self._locator = reference_unet, face_locator
        self._latent_shape = latent_shape

    def __call__(self, reference: Reference) -> dict[str, Tensor]:
        """``face`` (1, C_0, h, w) and ``reference.PLACE`` (1, L, C), see `DenoisingUNet`."""
        device = _device(self._unet)
        latent = torch.from_numpy(reference.features).reshape(1, *self._latent_shape).to(device)
        x0, y0, x1, y1, side = (int(v) for v in masked_box(reference))
        mask = torch.zeros(1, 1, side, side, device=device)
        mask[:, :, y0:y1, x0:x1] = 1.0
        with torch.no_grad():
            _, bank = self._unet(latent)
            face = self._locator(mask)
        return {"face": face} | {f"reference.{place}": kept for place, kept in bank.items()}


def _face_box(landmarks: Floats, side: int) -> NDArray[np.int32]:
    """x0, y0, x1, y1 of the face's box, grown, inside the square; then the square's side."""
    low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
    grown = MASK_GROWTH * (high - low)
    corners = np.concatenate([np.floor(low - grown), np.ceil(high + grown)])
    return np.array([*np.clip(corners, 0, side), side], np.int32)


def _device(net: torch.nn.Module) -> torch.device:
    return next(net.parameters()).device

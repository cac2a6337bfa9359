"""The video latent space: a portrait as a reference, VAE latents as frames.

Joins the face tracker, the framing and the autoencoder behind `LatentSpace`; `ReferenceEncoder`
makes of a reference what the denoising UNet is told. Knows neither the diffusion core nor sound.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.conditioning import Floats, Reference
from model.portrait.framing import MAX_SIZE, Frame, frame
from model.portrait.landmarks import FaceTracker
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.vae import VAE

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

MAX_KEPT_SIDE = 2048  # of the portrait, for `full` framing
MASK_GROWTH = 0.1  # of the face's box, on each side: EchoMimic's own
SEAM = 0.06  # of the square's side, where `full` framing blends into the picture
DECODED_AT_ONCE = 4  # frames


class VideoSpace:
    """A frame's latent is (C · h · w,): the autoencoder's, of a square around the face."""

    name = "video"

    def __init__(self, vae: VAE, side: int, threads: int = 1) -> None:
        """``side``: pixels of the square that the networks see (512 in EchoMimic)."""
        stride = vae.config.stride
        if side < 1 or side % stride:
            raise ValueError(f"side = {side}, expected a multiple of {stride}")
        self._vae, self.side = vae, side
        self.latent_shape = (vae.config.latent_channels, side // stride, side // stride)
        self.dim = int(np.prod(self.latent_shape))
        self._tracker = FaceTracker(threads)

    def encode_reference(self, picture: Picture) -> Reference:
        """``picture`` (H, W, 3) RGB → what is kept of it. Raises `model.portrait.NoFaceError`.

        ``features`` are the square's latent; the reference UNet's bank is derived from it where it
        is used (`ReferenceEncoder`), so a kept avatar is 64 KB of it and not 23 MB.
        """
        kept = _at_most(picture, MAX_KEPT_SIDE)
        face = self._tracker.find(kept)
        person = self._tracker.person(kept, face).whole
        height, width = kept.shape[:2]
        view = frame("portrait", MAX_SIZE, width, height, face.landmarks, person)
        square = Frame(view.corner, view.scale * self.side / MAX_SIZE, self.side, self.side)
        with torch.inference_mode():
            latent = self._vae.encode(self._pixels(square.cut(kept, 0)))[0]
        scale = picture.shape[1] / width
        x0, y0, x1, y1 = (float(v * scale) for v in face.box)
        return Reference(
            latent_space=self.name,
            width=picture.shape[1],
            height=picture.shape[0],
            face_box=(x0, y0, x1, y1),
            face_confidence=face.confidence,
            features=latent.float().cpu().numpy().reshape(-1),
            arrays={
                "picture": kept,
                "landmarks": face.landmarks,
                "square": np.array([*square.corner, square.scale], np.float32),
                "face": _face_box(square.place(face.landmarks), self.side),
            },
        )

    def rest_prefix(self, frames: int) -> Floats:
        """(frames, D) zeros, the mean of all latents: no past is known yet."""
        return np.zeros((frames, self.dim), np.float32)

    def decoder(self, reference: Reference, size: int, framing: str) -> VideoDecoder:
        """Prepare to draw. Raises ``ValueError`` for another space's reference or a bad option."""
        if reference.latent_space != self.name:
            raise ValueError(
                f"the reference is of the {reference.latent_space!r} space, not {self.name!r}"
            )
        return VideoDecoder(self._vae, self.latent_shape, reference, size, framing)

    def _pixels(self, square: NDArray[np.generic]) -> Tensor:
        """(H, W, 3) 0 … 255 → (1, 3, H, W), -1 … 1."""
        pixels = torch.from_numpy(np.ascontiguousarray(square, np.float32))
        return pixels.permute(2, 0, 1)[None].to(_device(self._vae)) / 127.5 - 1.0


class VideoDecoder:
    """Draws one reference's latents at one size: the square itself, or put back in the picture."""

    def __init__(
        self,
        vae: VAE,
        latent_shape: tuple[int, int, int],
        reference: Reference,
        size: int,
        framing: str,
    ) -> None:
        arrays = reference.arrays
        picture = arrays["picture"].astype(np.uint8, copy=False)
        # Of a portrait's frame only the size counts: the square was chosen with its own mask.
        whole = np.ones((1, 1), np.float32)
        landmarks = arrays["landmarks"].astype(np.float32, copy=False)
        target = frame(framing, size, picture.shape[1], picture.shape[0], landmarks, whole)
        self.width, self.height = target.width, target.height
        self._vae, self._latent_shape = vae, latent_shape
        self._around: _Around | None = None
        if framing == "full":
            x, y, scale = (float(v) for v in arrays["square"])
            self._around = _Around(picture, target, (x, y), scale, vae.config.stride, latent_shape)

    def decode(self, latents: Floats) -> Iterator[Picture]:
        """``latents`` (T, D) → T frames (height, width, 3) RGB."""
        shaped = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(_device(self._vae))
        shaped = shaped.reshape(-1, *self._latent_shape)
        for start in range(0, shaped.shape[0], DECODED_AT_ONCE):
            with torch.inference_mode():
                pixels = self._vae.decode(shaped[start : start + DECODED_AT_ONCE])
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

    def __init__(
        self,
        picture: Picture,
        target: Frame,
        corner: tuple[float, float],
        scale: float,
        stride: int,
        latent_shape: tuple[int, int, int],
    ) -> None:
        self._picture = target.cut(picture, 0).astype(np.float32)
        self._size = (target.width, target.height)
        side = latent_shape[1] * stride
        zoom = target.scale / scale
        # What is shrunk is shrunk by area first; the warp then only moves it.
        self._side = max(1, min(side, round(side * zoom)))
        zoom *= side / self._side
        half = 0.5 * zoom - 0.5  # pixel centres
        self._matrix = np.array(
            [
                [zoom, 0.0, corner[0] * target.scale + half],
                [0.0, zoom, corner[1] * target.scale + half],
            ]
        )
        edge = np.minimum(np.arange(side) + 0.5, np.arange(side)[::-1] + 0.5) / (SEAM * side)
        ramp = np.clip(np.minimum.outer(edge, edge), 0.0, 1.0).astype(np.float32)
        self._share = self._warp(ramp)[..., None]

    def put(self, square: Picture) -> Picture:
        warped = self._warp(square.astype(np.float32))
        return np.rint(self._picture + self._share * (warped - self._picture)).astype(np.uint8)

    def _warp(self, image: Floats) -> Floats:
        if image.shape[0] != self._side:
            image = cv2.resize(image, (self._side, self._side), interpolation=cv2.INTER_AREA)
        return cv2.warpAffine(image, self._matrix, self._size).astype(np.float32)


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
        x0, y0, x1, y1, side = (int(v) for v in reference.arrays["face"])
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


def _at_most(picture: Picture, side: int) -> Picture:
    shrink = side / max(picture.shape[:2])
    if shrink >= 1.0:
        return picture
    size = (max(1, round(picture.shape[1] * shrink)), max(1, round(picture.shape[0] * shrink)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)

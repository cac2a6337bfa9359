"""Frames per second of the renderer and of alternative ways to warp a portrait.

    python bench/render.py [--size 512] [--frames 200]

All candidates apply the same motions on one core; only `render`, which ships, also draws eyes and
mouth. Skia needs `skia-python`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from model.motion.space import MotionSpace
from model.portrait.blendshapes import ACTIONS, MOTION_DIM
from model.portrait.image import load_picture
from model.rendering.raster import draw_triangles
from model.rendering.renderer import PortraitRenderer

PORTRAIT = Path(__file__).parents[1] / "docs" / "examples" / "presenter.jpg"
Draw = Callable[[np.ndarray, np.ndarray], object]


def motions(renderer: PortraitRenderer, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random talking: jaw, lids, brows and a moving head."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        actions = renderer.rest.copy()
        actions[ACTIONS.index("jawOpen")] = rng.uniform(0.0, 0.4)
        actions[ACTIONS.index("browInnerUp")] = rng.uniform(0.0, 0.3)
        for side in ("Left", "Right"):
            actions[ACTIONS.index(f"eyeBlink{side}")] = rng.uniform(0.0, 0.4)
        pose = np.concatenate([rng.normal(0, 0.06, 3), rng.normal(0, 0.02, 3)])
        made.append((actions, pose.astype(np.float32)))
    return made


def compiled_mesh(renderer: PortraitRenderer) -> Draw:
    out = np.empty_like(renderer.portrait)
    source = np.ascontiguousarray(renderer.mesh.rest[:, :2])

    def draw(actions: np.ndarray, pose: np.ndarray) -> None:
        out[...] = renderer.portrait
        target = renderer.vertices(actions, pose)
        draw_triangles(renderer.mesh.triangles, target, source, renderer.texture, out)

    return draw


def dense_field(renderer: PortraitRenderer, size: int) -> np.ndarray:
    """(58, n, n, 2) linear displacement basis on a grid with a quarter of the resolution."""
    n = size // 4
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.2, (MOTION_DIM, n, n, 2)).astype(np.float32)


def opencv_remap(renderer: PortraitRenderer, size: int) -> Draw:
    basis = dense_field(renderer, size).reshape(MOTION_DIM, -1)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).astype(np.float32)

    def draw(actions: np.ndarray, pose: np.ndarray) -> None:
        field = (np.concatenate([actions, pose]) @ basis).reshape(size // 4, size // 4, 2)
        full = grid + cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR)
        cv2.remap(renderer.portrait, full, None, cv2.INTER_LINEAR)

    return draw


def torch_grid_sample(renderer: PortraitRenderer, size: int) -> Draw:
    basis = torch.from_numpy(dense_field(renderer, size).reshape(MOTION_DIM, -1))
    picture = torch.from_numpy(renderer.portrait).permute(2, 0, 1)[None].float()
    line = torch.linspace(-1, 1, size)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)[None]

    def draw(actions: np.ndarray, pose: np.ndarray) -> None:
        motion = torch.from_numpy(np.concatenate([actions, pose]))
        field = (motion @ basis).reshape(1, size // 4, size // 4, 2).permute(0, 3, 1, 2)
        wide = torch.nn.functional.interpolate(
            field, size=(size, size), mode="bilinear", align_corners=False
        )
        torch.nn.functional.grid_sample(
            picture, grid + wide.permute(0, 2, 3, 1) / size, align_corners=False
        ).byte()

    return draw


def skia_vertices(renderer: PortraitRenderer, size: int) -> Draw | None:
    try:
        import skia
    except ImportError:
        return None
    rgba = np.dstack([renderer.portrait, np.full((size, size), 255, np.uint8)])
    pad = renderer.pad
    shader = skia.Image.fromarray(rgba, skia.kRGBA_8888_ColorType).makeShader(
        skia.TileMode.kClamp, skia.TileMode.kClamp, skia.SamplingOptions(skia.FilterMode.kLinear)
    )
    out = np.empty((size, size, 4), np.uint8)
    surface = skia.Surface(out)
    source = [skia.Point(float(x - pad), float(y - pad)) for x, y in renderer.mesh.rest[:, :2]]
    indices = renderer.mesh.triangles.ravel().tolist()
    paint = skia.Paint(Shader=shader)

    def draw(actions: np.ndarray, pose: np.ndarray) -> np.ndarray:
        target = [skia.Point(float(x), float(y)) for x, y in renderer.vertices(actions, pose)]
        mesh = skia.Vertices(skia.Vertices.kTriangles_VertexMode, target, source, None, indices)
        surface.getCanvas().drawVertices(mesh, paint)
        return out  # the surface draws into this memory: keep both alive

    return draw


def frames_a_second(draw: Draw, made: list[tuple[np.ndarray, np.ndarray]]) -> float:
    for actions, pose in made[:10]:
        draw(actions, pose)
    spent = []
    for actions, pose in made:
        start = time.perf_counter()
        draw(actions, pose)
        spent.append(time.perf_counter() - start)
    return 1.0 / float(np.median(spent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--frames", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    space = MotionSpace()
    picture = load_picture(PORTRAIT.read_bytes())
    for size in (128, args.size):  # the first one compiles
        start = time.perf_counter()
        reference = space.encode_reference(picture)
        encoded = time.perf_counter()
        renderer = space.decoder(reference, size, "portrait")
        prepared = time.perf_counter()
    made = motions(renderer, args.frames)
    print(f"{platform.processor() or platform.machine()}, one core, {args.size}x{args.size}")
    print(f"portrait to reference {1e3 * (encoded - start):.0f} ms")
    print(f"reference to renderer {1e3 * (prepared - encoded):.0f} ms")
    candidates: dict[str, Draw | None] = {
        "render: mesh, eyes and mouth (ships)": renderer.render,
        "mesh alone, compiled rasteriser": compiled_mesh(renderer),
        "mesh alone, Skia vertices": skia_vertices(renderer, args.size),
        "dense basis, OpenCV remap": opencv_remap(renderer, args.size),
        "dense basis, torch grid_sample": torch_grid_sample(renderer, args.size),
    }
    for name, draw in candidates.items():
        if draw is None:
            print(f"{name:40} not installed")
        else:
            print(f"{name:40} {frames_a_second(draw, made):6.0f} frames/s")


if __name__ == "__main__":
    main()

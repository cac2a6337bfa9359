"""`fada engines`: builds engines and lists the built ones."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from engines.artifacts import (
    Manifest,
    Requirements,
    default_folder,
    incompatibility,
    stored,
    verify,
)
from engines.base import BACKENDS, machines
from engines.build import PRECISIONS, BuildSpec, build
from engines.example_inputs import example_model, names
from engines.provision import build_lock, build_missing
from fada.cli.settings import read_settings
from server import logs
from server.worker.pipelines import model_choice

log = logging.getLogger("fada.engines")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", required=True)
    text = "build an engine, compare it with its network and store it"
    build = commands.add_parser("build", help=text, description=text)
    build.add_argument(
        "--model",
        help="one of `fada engines models` [what a worker with these settings would build]",
    )
    build.add_argument("--backend", choices=sorted(BACKENDS), help="with --model")
    build.add_argument("--precision", default="fp32", choices=PRECISIONS, help="[%(default)s]")
    build.add_argument(
        "--batch",
        type=batch_range,
        default=range(1, 9),
        metavar="FIRST:LAST",
        help="windows in one call, fewest and most [1:8]",
    )
    build.add_argument("--weights", type=Path, help="a file to use instead of the shipped weights")
    build.add_argument(
        "--tiny", action="store_true", help="a small video network of the same architecture"
    )
    build.add_argument("--locked", action="store_true", help="the lock on the folder is inherited")
    text = "list the built engines and whether they can run here"
    listing = commands.add_parser("list", help=text, description=text)
    for command in (build, listing):
        command.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            help="where engines are stored [FADA_ENGINES, or fada/engines in the cache]",
        )
    text = "list the networks that engines can be built from"
    commands.add_parser("models", help=text, description=text)


def run(options: argparse.Namespace) -> int:
    if options.action == "models":
        print(*names(), sep="\n")
        return 0
    root = options.out or default_folder()
    if options.action == "list":
        return _list(root)
    if (options.model is None) != (options.backend is None):
        raise ValueError("--model and --backend go together; without both, what a worker builds")
    return _build_served(options, root) if options.model is None else _build(options, root)


def batch_range(text: str) -> range:
    """``1:8`` or ``4`` → the sizes. Raises ``argparse.ArgumentTypeError`` for anything else."""
    first, _, last = text.partition(":")
    try:
        sizes = range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected FIRST:LAST, like 1:8") from error
    if not sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected sizes from 1 up, like 1:8")
    return sizes


def _build(options: argparse.Namespace, root: Path) -> int:
    logging.getLogger("engines").setLevel(logging.INFO)
    torch.set_num_threads(1)
    spec = BuildSpec(options.backend, options.precision, options.batch)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = example_model(options.model, options.weights, tiny=options.tiny, device=device)
    with build_lock(root):
        place, manifest = build(model, spec, root)
    print(place)
    print(f"{manifest.title}: {_agreement(manifest)}")
    return 0


def _build_served(options: argparse.Namespace, root: Path) -> int:
    settings = read_settings(options)
    logs.configure(settings.log_format)
    if settings.pipeline is not None:
        raise ValueError("FADA_PIPELINE loads networks that no engine is known for")
    torch.set_num_threads(1)
    for built in build_missing(model_choice(settings), root, locked=options.locked):
        log.info("%s is in %s", built.title, built.place)
    return 0


def _list(root: Path) -> int:
    found = list(stored(root))
    if not found:
        print(f"no engines in {root}")
    for folder, manifest in found:
        print(folder.name)
        if isinstance(manifest, str):
            print(f"  cannot run: {manifest}")
            continue
        where = manifest.machine.get("gpu", manifest.machine.get("device", "?"))
        print(f"  {manifest.model}: {manifest.title}, on {where}, {_agreement(manifest)}")
        reason = _reason(folder, manifest)
        print("  fits this machine" if reason is None else f"  cannot run here: {reason}")
    return 0


def _reason(folder: Path, manifest: Manifest) -> str | None:
    """Only the machine and the files matter here: `list` has no network to compare with."""
    required = Requirements(manifest.weights, manifest.code, manifest.shapes, machines())
    return incompatibility(manifest, required) or verify(folder, manifest)


def _agreement(manifest: Manifest) -> str:
    if not manifest.parity:
        return "never compared with its network"
    errors = ", ".join(f"{error:.1e} at {rows}" for rows, error in manifest.parity.items())
    return f"off by {errors} rows (at most {manifest.tolerance:.0e})"

"""`fada corpus build`: speech of synthetic voices, with phone times."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.data.phones import Aligner
from training.data.synthetic.corpus import FLITE_VOICES, HIBARI_VOICES, Synthesiser, build, plan
from training.data.synthetic.engines import Flite, HibariVoice, Kokoro
from training.data.synthetic.sentences import bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("build",), help="synthesise sentences")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument(
        "--minutes", type=float, default=95.0, help="length of the corpus [%(default)s]"
    )
    parser.add_argument("--voices", type=Path, help="folder of Kokoro voice styles (*.bin)")
    parser.add_argument(
        "--texts",
        type=Path,
        help="manifest.csv with public-domain transcripts to synthesise as well",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of Kokoro [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Build the corpus, or resume the one in ``--out``.

    Raises ``ValueError`` for flags that do not fit and for a synthesiser that is not installed.
    """
    engines: dict[str, Synthesiser] = {"flite": Flite(), "hibari": HibariVoice()}
    voices = {"flite": FLITE_VOICES, "hibari": HIBARI_VOICES}
    if args.voices is not None:
        kokoro = Kokoro(args.voices, args.threads)
        engines["kokoro"], voices["kokoro"] = kokoro, kokoro.voices
    sentences = bank(args.texts)
    utterances = {engine: plan(engine, names, sentences) for engine, names in voices.items()}
    rows = build(args.out, utterances, engines, align=Aligner(), minutes=args.minutes)
    print(f"{args.out / 'manifest.csv'}: {sum(float(r['seconds']) for r in rows) / 60:.1f} min")
    return 0

"""Figures of audio encoders: ``bench/audio_encoder.py --data GRID --speech SPEECH WEIGHTS…``.

For each file of `fada train audio-encoder` (or of a teacher), on held-out GRID clips and on unseen
voices, with audio windows as in service (24 rows, four of them look-ahead): the viseme accuracy,
the same among /p b m/ and in silence, and the correlation of the predicted jaw with the real one,
or for unseen voices with phone openness. ``--between 0.25,0.5`` also evaluates interpolations of
two files.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch

from model.audio.log_mel import HOP, PREFIX
from model.audio.stream import windows_of
from model.motion.checkpoint import load_weights
from model.motion.network import MotionNet
from model.types import Floats
from training.data.phones import openness, visemes
from training.evaluation.evaluate import held_out_set
from training.evaluation.metrics import JAW, Utterance, correlation
from training.weight_interpolation import interpolate_audio_encoder

_CLOSED = 1  # /p b m/ among `phones.VISEMES`; silence is 0


def predicted(net: MotionNet, speech: Utterance) -> tuple[Floats, Floats]:
    """Motion (T, 58), in the network's units, and viseme logits (T, classes) of an utterance."""
    windows = windows_of(speech.samples)
    rows = torch.from_numpy(np.stack([w.features for w in windows]))
    on = torch.ones(len(rows))
    with torch.no_grad():
        motion, logits = net.audio_heads(net.audio_tokens({"audio": rows, "has_audio": on}))
    new = slice(PREFIX, PREFIX + HOP)
    frames = sum(w.frames for w in windows)
    return (
        motion[:, new].flatten(0, 1)[:frames].numpy(),
        logits[:, new].flatten(0, 1)[:frames].numpy(),
    )


def report(net: MotionNet, utterances: list[Utterance], truth: list[Floats] | None) -> str:
    """One line of figures; ``truth``: the real jaws, None to compare with phone openness."""
    jaws, found, true, wanted = [], [], [], []
    for i, speech in enumerate(utterances):
        motion, logits = predicted(net, speech)
        shares = visemes(speech.phones, len(motion))
        sure = shares.max(1) > 0.9  # frames shared by two phones have no right answer
        jaws.append(motion[:, JAW])
        wanted.append(openness(speech.phones, len(motion)) if truth is None else truth[i])
        found.append(logits.argmax(1)[sure])
        true.append(shares.argmax(1)[sure])
    t, s = np.concatenate(found), np.concatenate(true)
    r = correlation(np.concatenate(jaws), np.concatenate(wanted))
    right = t == s
    return (
        f"frames right {right.mean():.3f}  /p b m/ {right[s == _CLOSED].mean():.3f}  "
        f"silence {right[s == 0].mean():.3f}  jaw r {r:.3f}"
    )


def main() -> None:
    """Print two lines per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--voices", type=int, default=40)
    parser.add_argument(
        "--between", type=lambda text: list(map(float, text.split(","))), default=[]
    )
    args = parser.parse_args()
    if args.between and len(args.weights) != 2:
        parser.error("--between takes two files")
    torch.set_num_threads(1)
    tests = held_out_set(args.data, args.speech, clips=args.clips, voices=args.voices)
    nets = {str(path): load_weights(path).net for path in args.weights}
    early, late = nets[str(args.weights[0])], nets[str(args.weights[-1])]
    for share in args.between:
        mixed = copy.deepcopy(late)
        interpolate_audio_encoder(mixed, early, late, share=share)
        nets[f"{share} of the way"] = mixed
    for name, net in nets.items():
        print(f"{name}\n  GRID    {report(net, tests.clips, [m[:, JAW] for m in tests.real])}")
        print(f"  voices  {report(net, tests.voices, None)}", flush=True)


if __name__ == "__main__":
    main()

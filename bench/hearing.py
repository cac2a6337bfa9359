"""How well an audio encoder hears: ``bench/hearing.py --data GRID --speech SPEECH WEIGHTS…``.

For each file of `fada train audio-encoder` (or of a teacher), on held-out GRID clips and on unseen
voices, each frame's sound as in service (24 rows, four of them to come): the share of
frames whose visible class of phone is told right, that share among /p b m/ and among silence, and
the correlation of the jaw as heard with the real one, or elsewhere with phone openness. With
``--between 0.25,0.5``, of two files, ears so far from the first's to the second's are tried too.
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


def heard(net: MotionNet, speech: Utterance) -> tuple[Floats, Floats]:
    """(T, 58) motion in the network's units and (T, classes) logits of a whole speech."""
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


def report(net: MotionNet, spoken: list[Utterance], truth: list[Floats] | None) -> str:
    """One line of figures; ``truth``: the real jaws, else phones say how far a mouth opens."""
    jaws, told, said, wanted = [], [], [], []
    for i, speech in enumerate(spoken):
        motion, logits = heard(net, speech)
        shares = visemes(speech.phones, len(motion))
        sure = shares.max(1) > 0.9  # a frame that two phones share has no right answer
        jaws.append(motion[:, JAW])
        wanted.append(openness(speech.phones, len(motion)) if truth is None else truth[i])
        told.append(logits.argmax(1)[sure])
        said.append(shares.argmax(1)[sure])
    t, s = np.concatenate(told), np.concatenate(said)
    r = correlation(np.concatenate(jaws), np.concatenate(wanted))
    right = t == s
    return (
        f"frames right {right.mean():.3f}  /p b m/ {right[s == _CLOSED].mean():.3f}  "
        f"silence {right[s == 0].mean():.3f}  jaw r {r:.3f}"
    )


def main() -> None:
    """Prints two lines a file."""
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
    tests = held_out_set(args.data, args.speech, args.clips, args.voices)
    nets = {str(path): load_weights(path).net for path in args.weights}
    early, late = nets[str(args.weights[0])], nets[str(args.weights[-1])]
    for share in args.between:
        mixed = copy.deepcopy(late)
        interpolate_audio_encoder(mixed, early, late, share)
        nets[f"{share} of the way"] = mixed
    for name, net in nets.items():
        print(f"{name}\n  GRID    {report(net, tests.clips, [m[:, JAW] for m in tests.real])}")
        print(f"  voices  {report(net, tests.voices, None)}", flush=True)


if __name__ == "__main__":
    main()

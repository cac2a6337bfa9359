"""Train `model/weights/pitch_readout.safetensors`: pitch and voicing from a log-mel row.

    python -m training.pitch_readout --speech SPEECH

A network of one hidden layer, fitted to the pitch that autocorrelation finds in the recordings to
train on (`training.data.inferred.split_speeches`). Prints how well it reads held-out voices. Takes
two minutes of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from model.audio.log_mel import PAST_SAMPLES, ROW_SAMPLES, row
from model.motion.cues import PITCH_CENTRE, PITCH_FILE, PITCH_SPREAD, pitch_input
from model.types import SAMPLES_PER_FRAME, Floats
from training.data.inferred import split_speeches
from training.evaluation.prosody import voiced_pitch

HIDDEN, STEPS, BATCH, RATE = 16, 2500, 512, 6e-3
LONGEST = 12 * 16_000  # samples of a recording
HELD_OUT = 120  # recordings to judge by
_LEVELS = 0.05  # deviation of noise on the inputs


def read_speech(path: Path) -> tuple[Floats, Floats, Floats]:
    """(T, D) inputs, (T,) pitch in semitones, (T,) 1 where voiced."""
    samples = soundfile.read(path, dtype="float32")[0][:LONGEST]
    pitch, voiced = voiced_pitch(samples)
    padded = np.pad(samples, (PAST_SAMPLES, ROW_SAMPLES))
    starts = range(0, len(pitch) * SAMPLES_PER_FRAME, SAMPLES_PER_FRAME)
    rows = np.stack([row(padded[start : start + ROW_SAMPLES]) for start in starts])
    return pitch_input(rows), pitch.astype(np.float32), voiced.astype(np.float32)


def train(inputs: torch.Tensor, pitch: torch.Tensor, voiced: torch.Tensor) -> nn.Sequential:
    """The network, (N, D) -> (N, 2): pitch in `PITCH_SPREAD` around `PITCH_CENTRE`, voicing as a
    logit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2))
    optimizer = torch.optim.Adam(net.parameters(), RATE, weight_decay=1e-5)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    scaled = (pitch - PITCH_CENTRE) / PITCH_SPREAD
    for _ in range(STEPS):
        at = torch.randint(len(inputs), (BATCH,))
        guess = net(inputs[at] + _LEVELS * torch.randn(BATCH, inputs.shape[1]))
        wrong = F.smooth_l1_loss(guess[:, 0], scaled[at], beta=0.3, reduction="none")
        loss = (voiced[at] * wrong).mean()
        loss = loss + 0.3 * F.binary_cross_entropy_with_logits(guess[:, 1], voiced[at])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
    return net


def main() -> None:
    """Train, judge and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PITCH_FILE)
    args = parser.parse_args()
    known, unseen = split_speeches(args.speech)
    parts = [read_speech(args.speech / r["file"]) for r in known]
    net = train(*(torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)))
    chosen = np.linspace(0, len(unseen) - 1, HELD_OUT).round().astype(int)
    within, right = [], []
    for i in chosen:
        inputs, pitch, voiced = read_speech(args.speech / unseen[i]["file"])
        with torch.no_grad():
            guess = net(torch.from_numpy(inputs)).numpy()
        at = voiced > 0
        right.append((guess[:, 1] > 0) == at)
        if at.sum() > 25:
            within.append(np.corrcoef(guess[at, 0], pitch[at])[0, 1])
    print(f"unseen voices: pitch r within a speech {np.mean(within):.2f}, "
          f"voicing right {np.concatenate(right).mean():.2f}")  # fmt: skip
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()

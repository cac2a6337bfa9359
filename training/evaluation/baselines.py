"""Linear baselines of the comparison: what motion each frame's sound alone determines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.audio.log_mel import HOP, HOPS_PER_FRAME, LOOKAHEAD, PREFIX, log_mel, silence_row
from model.audio.stream import windows_of
from model.types import Floats
from training.data.corpus import Corpus
from training.evaluation.metrics import Utterance
from training.linear import Matrix, ridge, with_neighbours

Make = Callable[[list[Utterance], int], list[Floats]]  # utterances, seed → motions (T, 58)
Describe = Callable[[Floats], Floats]  # windows (N, PREFIX + HOP + LOOKAHEAD, 256) → (N, HOP, D)

_MEL_REACH, _MEL_PENALTY = 3, 300.0
_TOKEN_REACH, _TOKEN_PENALTY = 1, 300.0


@dataclass(frozen=True)
class Readout:
    """An affine map from descriptions of frames to latents."""

    x_mean: Matrix
    y_mean: Matrix
    weights: Matrix

    def __call__(self, described: Floats) -> Floats:
        """(..., D) → (..., 58)"""
        return ((described - self.x_mean) @ self.weights + self.y_mean).astype(np.float32)


def ridge_baseline(training: Corpus) -> Make:
    """Linear regression from the log-mel rows around a frame to its latents."""

    def describe(rows: Floats) -> Floats:
        return _around(rows, _MEL_REACH)

    return _maker(_fit(training, describe, _MEL_PENALTY), describe)


def token_readout(training: Corpus, encoder: nn.Module) -> Make:
    """Linear regression from a network's frozen audio tokens around a frame to its latents.

    It sees the sound that the network sees, through the same ``encoder``, and nothing else.
    """
    return _maker(fit_token_readout(training, encoder), _token_describer(encoder))


def fit_token_readout(training: Corpus, encoder: nn.Module) -> Readout:
    """The regression of `token_readout`, from `around_tokens` to latents."""
    return _fit(training, _token_describer(encoder), _TOKEN_PENALTY)


def around_tokens(tokens: Floats) -> Floats:
    """(N, PREFIX + HOP + LOOKAHEAD, D) → (N, HOP, 3 D): the new frames' tokens, with those beside
    them."""
    return _around(tokens, _TOKEN_REACH)


def _token_describer(encoder: nn.Module) -> Describe:
    @torch.no_grad()
    def describe(rows: Floats) -> Floats:
        tokens = [encoder(part) for part in torch.split(torch.from_numpy(rows), 256)]
        return around_tokens(torch.cat(tokens).numpy())

    return describe


def _fit(training: Corpus, describe: Describe, penalty: float) -> Readout:
    rows, targets = zip(*_training_windows(training), strict=True)
    x = describe(np.concatenate(rows))
    x = x.reshape(-1, x.shape[-1])
    y = np.concatenate(targets).reshape(len(x), -1)
    shown = np.isfinite(y).all(1)
    x, y = x[shown], y[shown]
    x_mean, y_mean = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    return Readout(x_mean, y_mean, ridge(x - x_mean, y - y_mean, penalty))


def _maker(readout: Readout, describe: Describe) -> Make:
    def make(utterances: list[Utterance], seed: int) -> list[Floats]:
        made = []
        for utterance in utterances:
            windows = windows_of(utterance.samples)
            described = describe(np.stack([window.features for window in windows]))
            parts = [d[: w.frames] for d, w in zip(described, windows, strict=True)]
            made.append(readout(np.concatenate(parts)))
        return made

    return make


def _training_windows(training: Corpus) -> Iterator[tuple[Floats, Floats]]:
    """Each clip's windows as a stream would cut them: rows (N, 24, 256), and the motion of their
    new frames (N, HOP, 58), NaN beyond the clip's end."""
    for first, frames in zip(training.first.tolist(), training.frames.tolist(), strict=True):
        hops = slice(first * HOPS_PER_FRAME, (first + frames) * HOPS_PER_FRAME)
        mel = log_mel(training.log_power[hops].float().exp().numpy()).reshape(frames, -1)
        before, after = (np.tile(silence_row(), (n, 1)) for n in (PREFIX, HOP + LOOKAHEAD))
        padded = np.concatenate([before, mel, after])
        motion = training.motion[first : first + frames].numpy()
        motion = np.pad(motion, ((0, HOP), (0, 0)), constant_values=np.nan)
        starts = range(0, frames, HOP)
        length = PREFIX + HOP + LOOKAHEAD
        yield (
            np.stack([padded[s : s + length] for s in starts]).astype(np.float32),
            np.stack([motion[s : s + HOP] for s in starts]),
        )


def _around(rows: Floats, reach: int) -> Floats:
    """(N, T, D) → (N, HOP, (2 reach + 1) D): the new frames, each with its neighbours."""
    wide = np.stack([with_neighbours(window, reach) for window in rows])
    return np.asarray(wide[:, PREFIX : PREFIX + HOP], np.float32)

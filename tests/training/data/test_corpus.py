"""From the tracked folder to training windows: held-out clips, alignment, finite values."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.log_mel import (
    CENTRE_DB,
    HOP,
    HOPS_PER_FRAME,
    MEL_BINS,
    PREFIX,
    ROW_DIM,
    SPECTRUM_BINS,
    SPREAD_DB,
    WINDOW_FRAMES,
    log_mel,
    power_spectrum,
)
from model.motion.network import MotionNet, NetConfig
from model.portrait.blendshapes import ACTIONS, MOTION_DIM, MOUTH
from model.types import SAMPLES_PER_FRAME
from training.data.augment import VoiceAugmenter
from training.data.batches import EncodedWindows, WindowSampler
from training.data.corpus import (
    MIN_LOG_POWER,
    Corpus,
    clip_rest,
    fit_lip_gap,
    grid_corpus,
    held_out,
    joined,
    load_grid,
    motion_statistics,
)
from training.data.music import Music, synthesise_music

JAW = ACTIONS.index("jawOpen")


@pytest.fixture(scope="module")
def corpus(grid_folder: Path) -> Corpus:
    grid = load_grid(grid_folder)
    return grid_corpus(grid, ~held_out(len(grid.texts)))


def sampler(corpus: Corpus, seed: int = 0) -> WindowSampler:
    mean, std = motion_statistics(corpus)
    return WindowSampler(corpus, mean, std, random=torch.Generator().manual_seed(seed))


def test_every_tenth_clip_is_held_out(corpus: Corpus) -> None:
    assert np.flatnonzero(held_out(30)).tolist() == [9, 19, 29]
    assert len(corpus) == 18


def test_sound_and_motion_are_aligned(corpus: Corpus) -> None:
    frames = len(corpus.motion)
    assert corpus.log_power.shape == (frames * HOPS_PER_FRAME, SPECTRUM_BINS)
    loudness = corpus.log_power.float().mean(1).reshape(frames, HOPS_PER_FRAME).mean(1)
    together = [
        np.corrcoef(np.roll(loudness.numpy(), lag), corpus.motion[:, JAW].numpy())[0, 1]
        for lag in (-2, -1, 0, 1, 2)
    ]
    assert int(np.argmax(together)) == 2


def test_lip_gap_is_recovered_from_actions(corpus: Corpus) -> None:
    found = fit_lip_gap(corpus)(corpus.motion[:, :52])
    assert np.corrcoef(found.numpy(), corpus.lip_gap.numpy())[0, 1] > 0.99


def test_the_rest_of_a_clip_is_its_silence_with_open_eyes() -> None:
    random = np.random.default_rng(0)
    clip = (0.01 * random.random((75, 52))).astype(np.float32)
    clip[20:50, JAW] = 0.5
    blink = ACTIONS.index("eyeBlinkLeft")
    clip[:, blink] = 0.1
    clip[30:40, blink] = 0.9
    rest = clip_rest(clip)
    assert rest[JAW] < 0.02 and rest[blink] == pytest.approx(0.1)


def test_standard_deviations_have_a_floor(corpus: Corpus) -> None:
    _, std = motion_statistics(corpus)
    assert std[ACTIONS.index("tongueOut")] == pytest.approx(0.01)
    assert std.min() >= 0.004


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_windows_are_finite_and_shaped_for_any_seed(corpus: Corpus, seed: int) -> None:
    batch = sampler(corpus, seed).draw(8)
    assert batch.x0.shape == (8, HOP, MOTION_DIM)
    assert batch.prefix.shape == (8, PREFIX, MOTION_DIM)
    assert batch.audio.shape == (8, WINDOW_FRAMES, ROW_DIM)
    for tensor in (batch.x0, batch.prefix, batch.audio, batch.reference):
        assert bool(tensor.isfinite().all())
    assert batch.audio.abs().max() < 8


def test_a_run_of_windows_is_one_voice_and_one_motion(corpus: Corpus) -> None:
    first, second = sampler(corpus).draw_run(16, 2)
    torch.testing.assert_close(second.clean_prefix[:, -HOP:], first.x0)
    torch.testing.assert_close(second.audio[:, :-HOP], first.audio[:, HOP:])
    torch.testing.assert_close(second.reference, first.reference)


def test_the_same_generator_gives_the_same_batch(corpus: Corpus) -> None:
    torch.testing.assert_close(sampler(corpus, 3).draw(4).audio, sampler(corpus, 3).draw(4).audio)


@torch.no_grad()
def test_audio_encoded_beforehand_gives_the_same_predictions(corpus: Corpus) -> None:
    net = MotionNet(NetConfig(width=32, blocks=1, whisper_blocks=1))
    bare = sampler(corpus).draw_run(3, 2)
    encoded = EncodedWindows(sampler(corpus), net.audio_encoder).draw_run(3, 2)
    for without, with_it in zip(bare, encoded, strict=True):
        x_t, t = torch.randn(without.x0.shape), torch.tensor([0.2, 0.5, 1.0])
        on = {"has_audio": torch.tensor([1.0, 0.0, 1.0])}
        expected = net(x_t, t, without.conditions() | on)
        assert torch.equal(net(x_t, t, with_it.conditions() | on), expected)
        gone = {**with_it.conditions(), **on, "audio": torch.full_like(with_it.audio, torch.nan)}
        assert torch.equal(net(x_t, t, gone), expected)  # the audio is not encoded again


def test_windows_of_inferred_mouths_borrow_real_eyes_and_heads(corpus: Corpus) -> None:
    still = corpus.motion.clone()
    still[:, :52][:, ~torch.tensor(MOUTH)] = 0
    still[:, 52:] = 0
    confidence = torch.full_like(corpus.confidence, 0.5)
    inferred = replace(corpus, motion=still, confidence=confidence)
    batch = sampler(joined([corpus, inferred])).draw(200)
    mouths_only = batch.x0[batch.confidence < 1]
    assert 60 < len(mouths_only) < 140
    assert mouths_only[:, :, 55:].std() > 0.3


def test_an_unchanged_voice_matches_the_live_front_end(corpus: Corpus) -> None:
    spectra = corpus.log_power[: 75 * HOPS_PER_FRAME].float()
    copies = spectra.expand(64, -1, -1)
    sounding = torch.ones(copies.shape[:2], dtype=torch.bool)
    random = torch.Generator().manual_seed(0)
    rows = VoiceAugmenter()(copies, corpus.noise[:1].expand(64, -1), sounding, random=random)
    live = torch.from_numpy(log_mel(spectra.exp().numpy())).reshape(75, ROW_DIM)
    loud = live.mean(1) > live.mean(1).quantile(0.7)
    # apart from its level, some of the 64 drawn voices are the speaker's own
    difference = (rows - live)[:, loud]
    spread = difference.std((1, 2))
    assert (spread < 0.15).any() and (spread > 0.3).any()
    assert rows.shape == (64, 75, HOPS_PER_FRAME * MEL_BINS)


def test_a_folder_without_data_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no motion"):
        load_grid(tmp_path)


def test_clips_of_different_lengths_keep_their_own_sound(grid_folder: Path, tmp_path: Path) -> None:
    with np.load(grid_folder / "motion.npz") as data:
        motion = dict(data)
    samples, rate = soundfile.read(grid_folder / "audio.opus", dtype="float32")
    # every third clip lacks its last frame
    starts = motion["start"]
    kept = np.setdiff1d(np.arange(len(motion["ok"])), starts[::3] + 74)
    for name in ("blendshapes", "pose", "ok", "landmarks62_xy"):
        motion[name] = motion[name][kept]
    motion["start"] = np.cumsum([0] + [75 - (c % 3 == 0) for c in range(len(starts) - 1)])
    np.savez(tmp_path / "motion.npz", **motion)
    shorter = samples.reshape(-1, SAMPLES_PER_FRAME)[kept].reshape(-1)
    soundfile.write(tmp_path / "audio.opus", shorter, rate, format="OGG", subtype="OPUS")
    shutil.copy(grid_folder / "landmarks478_sample.npz", tmp_path)
    grid = load_grid(tmp_path)
    assert [len(c) for c in grid.coefficients] == [75 - (c % 3 == 0) for c in range(len(starts))]
    for coefficients, sound in zip(grid.coefficients, grid.samples, strict=True):
        assert len(sound) == len(coefficients) * SAMPLES_PER_FRAME
        loud = np.abs(sound).reshape(len(coefficients), -1).mean(1)
        shifted = [
            np.corrcoef(loud[2:-2], coefficients[2 + lag : len(loud) - 2 + lag, JAW])[0, 1]
            for lag in (-1, 0, 1)
        ]
        assert int(np.argmax(shifted)) == 1
    assert len(grid_corpus(grid, np.ones(len(starts), bool)).motion) == len(kept)


def test_silent_windows_get_music_sometimes_and_mostly_silence() -> None:
    size, random = 400, torch.Generator().manual_seed(0)
    nothing = torch.full((size, 80, SPECTRUM_BINS), MIN_LOG_POWER)
    rows = VoiceAugmenter()(
        nothing, nothing[:, 0], torch.ones(size, 80, dtype=torch.bool), random=random
    )
    loudest = (rows * SPREAD_DB + CENTRE_DB).amax((1, 2))
    assert 0.05 < (loudest > -60).float().mean() < 0.2
    assert loudest.max() < 0


def test_music_holds_its_tones_and_then_jumps() -> None:
    piece = Music()(50, 200, torch.Generator().manual_seed(0))
    assert piece.mean((1, 2)) == pytest.approx(torch.ones(50), abs=1e-4)
    change = (piece + 1e-3).log().diff(dim=1).abs().mean(2)  # (50, hops) of a hop to the next
    encoded = power_spectrum(synthesise_music(2.0, seed=0)).sum(1)
    assert encoded.max() > 3 * np.median(encoded) > 0
    assert change.median() < 0.2 < 5 * change.median() < change.amax(1).median()

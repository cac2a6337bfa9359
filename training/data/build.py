"""Build a training corpus from GRID and, optionally, speech of other voices."""

from __future__ import annotations

from pathlib import Path

from model.types import FPS, SAMPLE_RATE
from training.data.confidence import TRACKED, SampleConfidence, write_confidences
from training.data.corpus import Corpus, fit_lip_gap, grid_corpus, held_out, joined, load_grid
from training.data.inferred import (
    LabelledSpeech,
    align_grid,
    closed_mouths,
    fit_mouth_model,
    inferred_corpus,
    recorded_speeches,
    synthetic_speeches,
)


def build_corpus(
    data: Path, speech: Path | None, synthetic: Path | None, *, phones: Path, seed: int
) -> Corpus:
    """GRID's training clips and, if given, other voices with inferred mouths; nothing held out.

    ``data``: folder of tracked clips. ``speech``: recordings with transcripts. ``synthetic``: a
    folder of ``fada corpus build``. ``phones``: cache of the alignments, which take minutes;
    ``confidence.csv`` beside it lists the confidence in each sample. Raises ``ValueError`` if a
    file is missing.
    """
    grid = load_grid(data)
    chosen = ~held_out(len(grid.texts))
    if speech is None and synthetic is None:
        return grid_corpus(grid, chosen)
    aligned = align_grid(grid, chosen, phones)
    tracked = grid_corpus(grid, chosen, aligned)
    mouths = fit_mouth_model(grid, aligned, seed)
    closed = closed_mouths(grid, aligned)
    speeches: dict[str, LabelledSpeech] = {}
    if speech is not None:
        speeches |= recorded_speeches(speech, phones)
    if synthetic is not None:
        speeches |= synthetic_speeches(synthetic)
    write_confidences(phones.with_name("confidence.csv"), _confidences(tracked, speeches))
    inferred = inferred_corpus(speeches, mouths, closed, lip_gap=fit_lip_gap(tracked))
    return joined([tracked, inferred])


def _confidences(tracked: Corpus, speeches: dict[str, LabelledSpeech]) -> list[SampleConfidence]:
    clips = [
        SampleConfidence(f"tracked/{i}", "tracked", frames / FPS, TRACKED)
        for i, frames in enumerate(tracked.frames.tolist())
    ]
    others = [
        SampleConfidence(name, s.source, len(s.samples) / SAMPLE_RATE, confidence=s.confidence)
        for name, s in speeches.items()
    ]
    return clips + others

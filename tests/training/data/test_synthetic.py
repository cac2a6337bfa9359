"""Synthetic speech: phones fill the sound, the plan does not leak, and the folder resumes."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from model.types import SAMPLE_RATE, Floats
from training.data.phones import OPENNESS, Aligner, Phone
from training.data.synthetic.corpus import (
    COLUMNS,
    FLITE_VOICES,
    HELD_OUT_VOICES,
    SyntheticUtterance,
    border_distance_ms,
    build,
    plan,
    read_phones,
    read_rows,
)
from training.data.synthetic.sentences import bank, held_out_sentence, in_words
from training.data.synthetic.timing import (
    EARLY_S,
    IPA,
    PAD,
    UNIT_S,
    TimedSpeech,
    flite_phones,
    phones_of,
)

HIBARI = importlib.util.find_spec("hibari") is not None and importlib.util.find_spec("onnx")
needs_hibari = pytest.mark.skipif(not HIBARI, reason="hibari-tts is not installed: extra corpus")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


def hum(seconds: float, silent: tuple[float, float] | None = None) -> Floats:
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = 0.3 * np.sin(2 * np.pi * 150 * t)
    if silent is not None:
        sound[(t >= silent[0]) & (t < silent[1])] = 0.0
    return sound.astype(np.float32)


def names(phones: list[Phone]) -> list[str]:
    return [p.name for p in phones]


def assert_fills(phones: list[Phone], seconds: float) -> None:
    assert phones[0].start_s == 0.0
    assert phones[-1].end_s == pytest.approx(seconds)
    for before, after in pairwise(phones):
        assert before.end_s == pytest.approx(after.start_s)
    assert all(p.end_s > p.start_s for p in phones)
    assert set(names(phones)) <= set(OPENNESS)


def test_every_phoneme_has_a_known_openness() -> None:
    assert set(IPA.values()) <= set(OPENNESS)


def test_tokens_become_arpabet_with_the_times_of_the_sound() -> None:
    # "my bird": stress joins the vowel, the vowel and its /r/ are one, the space is shared
    tokens = [PAD, *"mˈI bˈɜɹd.", PAD]
    units = [4.0] * len(tokens)
    sound = hum(len(tokens) * 4 * UNIT_S)
    sound[: round((4 * UNIT_S - EARLY_S) * SAMPLE_RATE)] = 0.0
    phones = phones_of(tokens, units, sound)
    assert names(phones) == ["SIL", "M", "AY", "B", "ER", "D"]
    assert phones[1].start_s == pytest.approx(4 * UNIT_S - EARLY_S)
    stress_start = 8 * UNIT_S - EARLY_S
    assert stress_start < phones[1].end_s < stress_start + 2 * UNIT_S
    assert_fills(phones, len(sound) / SAMPLE_RATE)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [("hɜɹ", ["HH", "ER"]), ("fˈɜɹi", ["F", "ER", "IY"]), ("ðəɹ", ["DH", "ER"]),
     ("əɹˈWnd", ["AH", "R", "AW", "N", "D"]), ("lˈɛTəɹ", ["L", "EH", "D", "ER"]),
     ("ʤˈYʧ", ["JH", "OY", "CH"])],
)  # fmt: skip
def test_an_r_joins_the_vowel_that_it_colours(tokens: str, expected: list[str]) -> None:
    units = [3.0] * len(tokens)
    assert names(phones_of(list(tokens), units, hum(len(tokens) * 3 * UNIT_S))) == expected


def test_a_comma_is_silence_only_where_the_sound_is_silent() -> None:
    tokens = list("pɑ, pɑ")
    units = [4.0, 4.0, 20.0, 2.0, 4.0, 4.0]
    seconds = sum(units) * UNIT_S
    paused = phones_of(tokens, units, hum(seconds, silent=(0.3, 0.5)))
    (silence,) = [p for p in paused if p.name == "SIL"]
    assert silence.start_s == pytest.approx(0.3, abs=0.006)
    assert silence.end_s == pytest.approx(0.5, abs=0.006)
    assert_fills(paused, seconds)
    assert "SIL" not in names(phones_of(tokens, units, hum(seconds)))


def test_unknown_tokens_and_sentences_without_sounds_are_rejected() -> None:
    with pytest.raises(ValueError, match="token 'ß', expected one of"):
        phones_of(["ß"], [4.0], hum(0.1))
    with pytest.raises(ValueError, match="expected at least one sound"):
        phones_of([PAD, ".", PAD], [4.0] * 3, hum(0.3))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from([*IPA, *" ˈˌ,.…?"]), st.integers(1, 20)), min_size=1, max_size=30
    ).filter(lambda rows: any(token in IPA for token, _ in rows)),
    st.integers(0, 1000),
)
def test_phones_fill_the_sound_of_any_sentence(rows: list[tuple[str, int]], seed: int) -> None:
    tokens = [PAD, *(t for t, _ in rows), PAD]
    units = [10.0, *(float(u) for _, u in rows), 10.0]
    random = np.random.default_rng(seed)
    sound = random.standard_normal(round(sum(units) * UNIT_S * SAMPLE_RATE)).astype(np.float32)
    hops = np.repeat(random.random(len(sound) // 800 + 1) < 0.5, 800)[: len(sound)]
    phones = phones_of(tokens, units, sound * np.where(hops, 0.0, 0.2).astype(np.float32))
    assert_fills(phones, len(sound) / SAMPLE_RATE)


def test_flites_phones_are_cut_or_extended_to_the_length_of_the_sound() -> None:
    segments = "pau:0.2 m:0.3 ax:0.4 pau:0.6 pau:0.7 b:0.8 pau:1.0"
    for seconds in (0.9, 1.1):
        phones = flite_phones(segments, seconds)
        assert names(phones) == ["SIL", "M", "AH", "SIL", "B", "SIL"]
        assert (phones[3].start_s, phones[3].end_s) == (0.4, 0.7)
        assert_fills(phones, seconds)
    assert_fills(flite_phones(segments, 0.5), 0.5)
    with pytest.raises(ValueError, match="flite's segment 'zzz', expected one of"):
        flite_phones("zzz:0.2", 0.2)


@given(st.integers(0, 999_999))
def test_numbers_become_alphabetic_words(number: int) -> None:
    words = in_words(number).split()
    assert words and all(w.isalpha() for w in words)
    assert in_words(number) != in_words((number + 1) % 1_000_000)


def test_numbers_are_spelled_out() -> None:
    assert in_words(0) == "zero"
    assert in_words(119) == "one hundred and nineteen"
    assert in_words(40_300) == "forty thousand three hundred"
    with pytest.raises(ValueError, match="number 1000000, expected 0 to 999999"):
        in_words(1_000_000)


def test_the_bank_is_varied_and_always_the_same(tmp_path: Path) -> None:
    sentences = bank()
    assert sentences == bank()
    assert len(set(sentences)) == len(sentences) > 200
    assert sum(s.endswith("?") for s in sentences) > 20
    assert sum("..." in s for s in sentences) > 10
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "file,transcript,source,license,seconds\n"
        "a.opus,A free sentence.,x,public domain,2\n"
        "b.opus,In 1871 it rained.,x,public domain,2\n"
        "c.opus,A sentence of others.,x,CC BY-SA 3.0,2\n"
    )
    assert set(bank(manifest)) - set(sentences) == {"A free sentence."}


def test_the_split_shares_no_voices_or_sentences() -> None:
    sentences = bank()
    utterances = [*plan("flite", FLITE_VOICES, sentences)]
    utterances += plan("kokoro", ("af_bella", "am_michael", "bf_isabella"), sentences)
    sides = {s: [t for t in utterances if t.split == s] for s in ("train", "held_out")}
    assert {t.voice for t in sides["held_out"]} == HELD_OUT_VOICES
    assert not {t.voice for t in sides["train"]} & HELD_OUT_VOICES
    assert not {t.text for t in sides["train"]} & {t.text for t in sides["held_out"]}
    assert all(held_out_sentence(t.number) == (t.split == "held_out") for t in utterances)
    assert len({t.file for t in utterances}) == len(utterances)


def test_any_start_of_the_plan_has_all_voices_with_different_sentences() -> None:
    beginning = plan("flite", FLITE_VOICES, bank())[:40]
    assert {v: sum(t.voice == v for t in beginning) for v in FLITE_VOICES} == dict.fromkeys(
        FLITE_VOICES, 10
    )
    assert len({t.text for t in beginning}) == 40


def test_the_distance_of_borders_ignores_phones_of_one_side_only() -> None:
    ours = [
        Phone(n, 0.1 * i, 0.1 * (i + 1)) for i, n in enumerate(("P", "AA", "T", "AH", "M", "IY"))
    ]
    late = [Phone(p.name, p.start_s + 0.02, p.end_s + 0.02) for p in ours]
    late.insert(3, Phone("SIL", 0.32, 0.33))
    assert border_distance_ms(ours, late) == pytest.approx(20.0)
    assert border_distance_ms(ours, None) is None
    assert border_distance_ms(ours, [Phone("Z", 0.0, 0.6)]) is None


class Speaker:
    """Speaks half a second of /m/ per sentence; is interrupted after ``until`` sentences."""

    def __init__(self, until: int = 1_000) -> None:
        self.utterances: list[tuple[str, str]] = []
        self._until = until

    def __call__(self, text: str, voice: str, rate: float) -> TimedSpeech:
        if len(self.utterances) == self._until:
            raise KeyboardInterrupt
        self.utterances.append((voice, text))
        return TimedSpeech(hum(0.5) * 4, [Phone("M", 0.0, 0.25), Phone("SIL", 0.25, 0.5)])


def no_alignment(samples: Floats, text: str) -> None:
    return None


def both(speaker: Speaker) -> dict[str, Speaker]:
    return {"flite": speaker, "hibari": speaker}


def small_plan() -> dict[str, list[SyntheticUtterance]]:
    sentences = bank()[:30]
    return {
        "flite": plan("flite", ("slt", "awb"), sentences),
        "hibari": plan("hibari", ("heart",), sentences),
    }


def test_an_interrupted_corpus_resumes(tmp_path: Path) -> None:
    cut, fresh = Speaker(until=5), Speaker()
    with pytest.raises(KeyboardInterrupt):
        build(
            tmp_path,
            small_plan(),
            both(cut),
            align=no_alignment,
            minutes=0.1,
        )
    with (tmp_path / "manifest.csv").open("a") as file:
        file.write("flite/slt/0001.flac,slt,fl")  # the row that was being written
    rows = build(
        tmp_path,
        small_plan(),
        both(fresh),
        align=no_alignment,
        minutes=0.1,
    )
    assert not set(cut.utterances) & set(fresh.utterances)
    assert (
        len(rows) == len(cut.utterances) + len(fresh.utterances) == 12
    )  # half a second each: 0.1 min
    assert read_rows(tmp_path) == rows
    again = Speaker()
    build(
        tmp_path,
        small_plan(),
        both(again),
        align=no_alignment,
        minutes=0.1,
    )
    assert again.utterances == []


def test_training_reads_the_written_corpus(tmp_path: Path) -> None:
    speakers = both(Speaker())
    rows = build(tmp_path, small_plan(), speakers, align=no_alignment, minutes=0.1)
    with (tmp_path / "manifest.csv").open(newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    engines = [r["engine"] for r in rows]
    assert engines.count("flite") > engines.count("hibari") > 1  # in step with their shares
    for row in rows:
        samples, rate = soundfile.read(tmp_path / row["file"], dtype="float32")
        assert rate == SAMPLE_RATE and samples.ndim == 1
        assert len(samples) / rate == pytest.approx(float(row["seconds"]), abs=1e-3)
        assert np.abs(samples).max() < 0.99  # loud sound is scaled down, not clipped
        assert_fills(read_phones(tmp_path, row["file"]), float(row["seconds"]))


def test_a_clip_whose_sound_is_missing_is_made_again(tmp_path: Path) -> None:
    speakers = both(Speaker())
    rows = build(tmp_path, small_plan(), speakers, align=no_alignment, minutes=0.05)
    (tmp_path / rows[0]["file"]).unlink()
    build(tmp_path, small_plan(), speakers, align=no_alignment, minutes=0.05)
    assert (tmp_path / rows[0]["file"]).is_file()
    assert len(read_rows(tmp_path)) == len(rows)


def test_zero_minutes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="minutes 0, expected more than 0"):
        build(tmp_path, {}, {}, align=no_alignment, minutes=0)


def assert_true_to_the_sound(speech: TimedSpeech, text: str) -> None:
    assert_fills(speech.phones, len(speech.samples) / SAMPLE_RATE)
    distance = border_distance_ms(speech.phones, Aligner()(speech.samples, text))
    assert distance is not None and distance < 30


TEXT = "Maybe my mother put the big map back, but nobody picked it up."


@needs_flite
@pytest.mark.parametrize("voice", FLITE_VOICES)
def test_flites_times_agree_with_forced_alignment(voice: str) -> None:
    pytest.importorskip("hibari", reason="hibari-tts is not installed: extra corpus")
    from training.data.synthetic.engines import Flite

    speech = Flite()(TEXT, voice, 1.0)
    assert_true_to_the_sound(speech, TEXT)
    slow = Flite()(TEXT, voice, 0.8)
    assert len(slow.samples) > 1.1 * len(speech.samples)


@needs_hibari
def test_hibaris_times_agree_with_forced_alignment() -> None:
    from training.data.synthetic.engines import HibariVoice

    speech = HibariVoice()(TEXT, "heart", 1.0)
    assert_true_to_the_sound(speech, TEXT)
    # lips meet at the phones: /p/ is far quieter than the vowels
    level = {"P": [0.0], "AE": [0.0]}
    for p in speech.phones:
        if p.name in level:
            part = speech.samples[int(p.start_s * SAMPLE_RATE) : int(p.end_s * SAMPLE_RATE)]
            level[p.name].append(float(np.sqrt(np.mean(part**2))))
    assert np.mean(level["P"][1:]) < 0.3 * np.mean(level["AE"][1:])
    assert np.array_equal(HibariVoice()(TEXT, "heart", 1.0).samples, speech.samples)

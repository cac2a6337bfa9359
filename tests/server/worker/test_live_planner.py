"""The choice between speech, rest and waiting, on a clock of the test's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from media.fmp4 import SAMPLE_RATE
from model.audio.log_mel import LOG_MEL
from model.audio.stream import SpeechStream
from server.worker.live_planner import FRAGMENT_FRAMES, LivePlanner, NextWindow, Wait
from tests.server.stream_client import pcm

FPS = 25
HOP_S = LOG_MEL.hop_s


class Player:
    """Plays the turns of a session as they become due, on a simulated clock."""

    def __init__(self, idle: bool, rate: int = 16_000) -> None:
        self.now_s = 100.0
        self.stream = SpeechStream(LOG_MEL, rate, output_rate=SAMPLE_RATE)
        self.planner = LivePlanner(self.stream, idle, self.now_s)
        self.made: list[tuple[float, bool, int]] = []  # when, speech, frames
        self.late_s: list[float] = []
        self.output: list[np.ndarray] = []

    def push(self, seconds: float) -> None:
        self.planner.push_audio(pcm(seconds), self.now_s)

    def make(self, turn: NextWindow) -> None:
        left = turn.frames
        while left:
            self.now_s = max(self.now_s, self.planner.begin_s(speech=turn.speech))
            if left < turn.frames and self.planner.yields_to_speech(speech=turn.speech):
                return
            frames = min(FRAGMENT_FRAMES, left)
            if turn.speech:
                self.output.append(self.stream.take(frames))
            else:
                self.stream.rest(frames)
            self.planner.shown(frames, self.now_s, speech=turn.speech)
            self.made.append((self.now_s, turn.speech, frames))
            self.late_s.append(self.planner.late_s(self.now_s))
            left -= frames

    def run(self, until_s: float) -> None:
        """Play until that moment, or while there is anything to do."""
        while self.now_s < until_s:
            step = self.planner.next(self.now_s)
            if isinstance(step, NextWindow):
                self.make(step)
            elif isinstance(step, Wait) and step.until_s is not None:
                self.now_s = min(step.until_s, until_s)
            else:
                return

    def speech_frames(self) -> int:
        return sum(frames for _, speech, frames in self.made if speech)


def test_rest_never_runs_ahead_of_the_clock_by_more_than_a_window() -> None:
    player = Player(idle=True)
    player.run(110.0)
    media_s = 0.0
    for at_s, speech, frames in player.made:
        media_s += frames / FPS
        assert not speech
        assert media_s <= at_s - 100.0 + HOP_S + 1e-9
    assert media_s == pytest.approx(10.0, abs=HOP_S)


def test_without_idle_nothing_is_made_before_sound_comes() -> None:
    player = Player(idle=False)
    assert player.planner.next(player.now_s) == Wait(None)
    player.push(0.3)
    assert player.planner.next(player.now_s) == Wait(None)  # no whole window yet
    player.planner.end()
    assert player.planner.next(player.now_s) == NextWindow(True, 8)


@settings(max_examples=40, deadline=None)
@example(arrive_s=0.53125, length_s=0.28125, chunk_s=0.01)
@given(
    arrive_s=st.floats(0.0, 1.0),
    length_s=st.floats(0.05, 2.0),
    chunk_s=st.sampled_from([0.01, 0.02, 0.1, 5.0]),
)
def test_speech_at_any_time_is_shown_whole_and_without_a_gap(
    arrive_s: float, length_s: float, chunk_s: float
) -> None:
    """As from a microphone in real time, or (one chunk) as from a synthesiser at once."""
    player = Player(idle=True)
    player.run(100.0 + arrive_s)
    sound = pcm(length_s)
    step = round(chunk_s * 16_000) * 2
    for n, start in enumerate(range(0, len(sound), step)):
        player.run(100.0 + arrive_s + n * chunk_s)
        player.planner.push_audio(sound[start : start + step], player.now_s)
    player.run(player.now_s + length_s + 2.0)
    frames = -(-len(sound) // 2 // 640)
    assert player.speech_frames() == frames
    kinds = [speech for _, speech, _ in player.made]
    first, last = kinds.index(True), len(kinds) - 1 - kinds[::-1].index(True)
    assert all(kinds[first : last + 1])
    assert sum(map(len, player.output)) == pytest.approx(3 * len(sound) // 2, abs=3)
    assert not player.stream.waiting
    # Begun within a window and its look-ahead of the first sample. Speech shorter than both begins
    # within two windows of its end, one to see that it does not go on and one of rest under way,
    # and up to two frames where rest is made frame by frame.
    longest_s = HOP_S + 0.16 + 0.05 if length_s >= 0.53 else length_s + 2 * HOP_S + 2 / FPS
    assert player.made[first][0] - (100.0 + arrive_s) <= longest_s


def test_late_sound_is_awaited_for_a_while_and_then_counts_as_ended() -> None:
    player = Player(idle=True)
    player.push(0.6)
    turn = player.planner.next(player.now_s)
    assert turn == NextWindow(True, 8)
    player.make(NextWindow(True, 8))
    player.now_s = player.planner.begin_s(speech=False)
    step = player.planner.next(player.now_s)
    assert isinstance(step, Wait) and step.until_s == pytest.approx(player.now_s + 0.2)
    player.now_s = step.until_s or 0.0
    assert player.planner.next(player.now_s) == NextWindow(True, 7)  # 0.28 s were left
    player.make(NextWindow(True, 7))
    player.now_s = player.planner.begin_s(speech=False)
    assert player.planner.next(player.now_s) == NextWindow(False, 8)


def test_rest_does_not_catch_up_after_a_stall() -> None:
    player = Player(idle=True)
    player.run(101.0)
    player.now_s += 5.0  # the reader stood still
    resumed_s, made = player.now_s, len(player.made)
    player.run(resumed_s + 1.0)
    again_s = sum(frames for _, _, frames in player.made[made:]) / FPS
    assert again_s <= 1.0 + HOP_S + 1e-9


def response_delays(
    player: Player, seconds: float, *, stall_at_s: float, stall_s: float
) -> list[float]:
    """Stream a microphone that never pauses to a worker that stalls once.

    Returns the seconds from each speech fragment's first sample of sound to the fragment.
    """
    began_s, shown_s, waits = player.now_s, 0.0, []
    sound, step = pcm(seconds), round(0.02 * 16_000) * 2
    for n, start in enumerate(range(0, len(sound), step), 1):
        before = len(player.made)
        player.planner.push_audio(sound[start : start + step], began_s + n * 0.02)
        if began_s + n * 0.02 >= player.now_s:
            player.now_s = began_s + n * 0.02
            player.run(player.now_s + 1e-6)
        for at_s, speech, frames in player.made[before:]:
            if speech:
                waits.append(at_s - (began_s + shown_s))
                shown_s += frames / FPS
        if n == round(stall_at_s / 0.02):
            player.now_s += stall_s
    return waits


def test_speech_starts_as_soon_as_it_arrives() -> None:
    for offset_s in np.arange(0.0, 0.32, 0.04):
        player = Player(idle=True)
        player.run(101.0 + offset_s)
        waits = response_delays(player, 4.0, stall_at_s=99.0, stall_s=0.0)
        # A window with its look-ahead, what the resamplers hold back, and one chunk.
        assert max(waits) <= HOP_S + 0.16 + 0.05, offset_s


def test_speech_catches_up_after_a_stall() -> None:
    for stall_s in (0.1, 0.5, 2.0):
        player = Player(idle=True)
        waits = response_delays(player, 8.0, stall_at_s=3.0, stall_s=stall_s)
        assert max(waits) >= stall_s
        assert max(waits[-10:]) <= HOP_S + 0.16 + 0.05
        kinds = [speech for _, speech, _ in player.made]
        assert all(kinds[kinds.index(True) :])  # no rest was put into it
        assert stall_s - HOP_S - 0.16 <= max(player.late_s) <= stall_s
        assert player.late_s[-1] <= 0


def test_an_interrupt_drops_pending_sound_and_rests_once() -> None:
    player = Player(idle=False)
    player.push(3.0)
    player.make(NextWindow(True, 8))
    player.planner.interrupt()
    assert not player.stream.waiting
    assert player.stream.consumed_bytes == len(pcm(3.0))
    assert player.planner.next(player.now_s) == NextWindow(False, 8)
    assert player.planner.next(player.now_s) == Wait(None)
    player.planner.interrupt()  # at rest already? the last that was made was speech
    player.make(NextWindow(False, 8))
    player.planner.interrupt()
    assert player.planner.next(player.now_s) == Wait(None)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]),
    cuts=st.lists(st.integers(0, 40_000), max_size=8),
)
def test_any_chunking_gives_the_same_windows_and_sound(rate: int, cuts: list[int]) -> None:
    data = pcm(0.7, rate)

    def play(chunks: list[bytes]) -> tuple[list[np.ndarray], np.ndarray]:
        player = Player(idle=False, rate=rate)
        features = []
        for chunk in [*chunks, None]:
            if chunk is None:
                player.planner.end()
            else:
                player.planner.push_audio(chunk, player.now_s)
            while isinstance(turn := player.planner.next(player.now_s), NextWindow):
                features.append(player.stream.window(0, turn.frames, rest=False).features)
                player.make(turn)
        return features, np.concatenate(player.output)

    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(ends)]
    (whole, one), (cut, two) = play([data]), play(chunks)
    assert np.array_equal(one, two)
    assert len(one) == pytest.approx(len(data) / 2 / rate * 48_000, abs=2)
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_sound_for_a_frame_is_a_frame_long() -> None:
    stream = SpeechStream(LOG_MEL, 16_000, output_rate=SAMPLE_RATE)
    stream.push_pcm(pcm(1.0))
    stream.fill()
    assert len(stream.take(4)) == 4 * SAMPLE_RATE // FPS


@pytest.mark.parametrize(("passed_s", "late_s"), [(0.1, 0.1), (1.5, 1.5), (-7.0, 0.0), (1e6, 5.0)])
def test_a_resumed_planner_keeps_its_lateness(passed_s: float, late_s: float) -> None:
    """Even if the clock is wrong, or the new machine's monotonic clock starts elsewhere."""
    player = Player(idle=True)
    player.run(103.0)
    state = player.planner.state(player.now_s)
    again = LivePlanner(player.stream, True, 7.0)
    again.resume(state, passed_s, 7.0)
    assert again.due_s - 7.0 == pytest.approx(player.planner.due_s - player.now_s - late_s)

"""Nonverbal behaviour: head, brows, eyes, cheeks and smile, from the prosody of the speech.

The motion network learned from one man who sits still and reads, so it moves mouths. What a face
does beside is generated here, frame by frame, from the log-mel rows of a window alone. Every
moving part is a second-order follower of a target; events of the speech, and chance, set targets.

What is made, and after whom:
    head    nods on accents (Hadar et al. 1983; Graf et al. 2002), a new posture at the bounds of
            phrases and now and then, a chin that rises with the voice (Munhall et al. 2004)
    brows   rise with accents and rising pitch (Cavé et al. 1996; Flecha-García 2010)
    gaze    fixations and aversions of people who talk (Kendon 1967; Lee, Badler & Badler 2002); the
            eyes counter the head's turn (vestibulo-ocular reflex)
    blinks  17 to 26 a minute in conversation (Bentivoglio et al. 1997), more at phrase ends
            (Nakano & Kitazawa 2010) and with large shifts of gaze (Evinger et al. 1994)

The state is a row of numbers a frame. Noise depends on session seed and frame, so a replay on
another worker, or cut into other windows, moves alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.audio.log_mel import HOP, PREFIX
from model.motion.cues import SpeechCues, speech_cues
from model.motion.emotions import EMOTION_ACTIONS, EMOTION_POSTURES, EMOTIONS
from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, MOTION_DIM, ROTATION, TRANSLATION
from model.types import FPS, Behaviour, Floats, WindowTask

# The followers, by place: degrees for the head, coefficients for the rest.
POSTURE, BEAT = slice(0, 3), slice(3, 6)  # pitch (down), yaw (to the subject's left), roll
BROWS, FROWN, SMILE, CHEEKS = range(6, 10)
LOOK = slice(10, 12)  # to the subject's left, up
GAINS = slice(12, 15)  # options: head, expression, wandering gaze
FEELING = slice(15, 21)  # how strong each emotion is
STATE = slice(21, 23)  # listening and thinking
_COUNT = 23
_HERTZ = np.array([0.46, 0.38, 0.38] + [1.5] * 3 + [1.8, 1.0, 0.6, 0.7] + [8.0] * 2 + [0.8] * 11)
_DAMPING = np.array([1.0] * 3 + [0.75] * 3 + [1.0] * 17)

# Head: deviations of postures in degrees, and of the push that keeps a head from being frozen.
_POSTURE_SPREAD = np.array([9.5, 6.8, 4.4])
_FARTHEST = 1.2  # deviations
_IDLE_SHARE = 0.3
_RETURN = 0.35  # of the present posture, taken off the next
_TURN_TILTS = 0.3  # roll with yaw
_PUSH = np.array([0.25, 0.25, 0.2])  # degrees a second, each frame
_NOD = 2.6  # degrees, of a strong accent
_RAISED = 0.7  # degrees, of postures in speech: most nods go down
_BREATH_HZ, _BREATH_PITCH, _BREATH_RISE = 0.24, 0.25, 0.006
# The face's centre over the neck's pivot, in outer-eye distances: GRID s1, sideways.
_PIVOT = np.array([0.0, 1.2, 0.55])
_POSTURE_FRAMES, _IDLE_POSTURE_FRAMES = 30.0, 75.0  # medians

# Gaze that counters a degree of the head, across and up: the eyes are drawn so that these hold the
# viewer's.
_COUNTER = 1 / 34.0, 1 / 22.0
_AVERTED, _REFIXATION = 0.26, 0.035  # mean of an aversion; deviation within the viewer's face
_AVERSION_FRAMES, _FIXATION_FRAMES, _IDLE_FIXATION_FRAMES = 14.0, 20.0, 32.0  # medians
# Shares of new fixations that are aversions. Talkers look away as they begin, and back as they end.
_AVERSE_START, _AVERSE_END, _AVERSE, _AVERSE_IDLE = 0.5, 0.05, 0.22, 0.12

# A lid's way down and up, frame by frame: 80 ms, and some 200 ms (Evinger et al. 1991).
_BLINK = 0.45, 1.0, 0.95, 0.7, 0.42, 0.2, 0.07
_BLINKS_A_MINUTE = 13.0  # at any time; those at phrase ends and with gaze come on top
_BLINK_AT_END, _BLINK_WITH_GAZE, _REFRACTORY, _END_FRAMES = 0.55, 0.3, 14, 12

# A listener leans in, brows a little up, and nods; a thinker tilts the head and looks up and aside.
_STATES = "listening", "thinking"
_STATE_POSTURES = np.array([[2.0, 0.0, 2.5], [-3.0, 5.0, 3.0]])
_STATE_ACTS = np.array([[0.12, 0.0, 0.12, 0.0], [0.0, 0.25, 0.0, 0.1]])
_LISTENER_NOD, _NOD_FRAMES, _AGAIN, _AGAIN_FRAMES = 2.6, 70.0, 0.45, 11.0
_THOUGHT, _THOUGHT_SPREAD, _THOUGHT_FRAMES, _AVERSE_LISTENING = (0.6, 0.5), 0.08, 30.0, 0.03

_PAUSE_DB, _FLOOR_DB = 28.0, -78.0  # below the speech's peaks; below any speech
_LEAST_ACCENT, _ACCENT_APART = 0.4, 6  # deviations, frames
_GESTURED = 0.82  # of accents
_QUESTION = 2.0  # semitones over the usual, at the end of a phrase
_NORMALS, _UNIFORMS = 8, 6  # random numbers a frame
_BEFORE = 2  # rows before a frame that its smoothed loudness takes


@dataclass
class _Memory:
    """What a frame leaves for the next beside the followers. Levels are in dB, times in frames."""

    peak: float = -40.0  # slowly falling
    level: float = -50.0  # over half a second of speech
    spread: float = 4.0
    pitch: float = 0.0  # semitones, over two seconds of voice
    pitch_spread: float = 3.0
    pitch_now: float = 0.0  # over `pitch`, of the last syllable
    voiced: float = 0.0  # frames so far, up to 25
    speaking: float = 0.0  # 1 in a phrase
    since_accent: float = 99.0
    since_bound: float = 99.0  # of a phrase
    since_blink: float = len(_BLINK)  # none at once: a video's first frame is its poster
    beat: float = 0.0  # frames until the beat's target, and so on, is at rest again
    brows: float = 0.0
    frown: float = 0.0
    look: float = 10.0  # frames until the next
    posture: float = 20.0
    nod: float = 30.0


_STATE_DIM = 3 * _COUNT + len(fields(_Memory))
CARRY_DIM = MOTION_DIM + _STATE_DIM


def _columns(*stems: str) -> NDArray[np.intp]:
    return np.array([i for i, name in enumerate(ACTIONS) if name.startswith(stems)])


# The network's own movement of these is replaced.
_OWNED = np.append(_columns("brow", "cheekSquint", "eye"), np.arange(ACTION_COUNT, MOTION_DIM))
_BLINKS = _columns("eyeBlink")
_LEFT, _RIGHT = (
    [ACTIONS.index(f"eyeLook{way}{side}") for way in ("Out", "In", "Up", "Down")]
    for side in ("Left", "Right")
)


def _actions(**weights: float) -> NDArray[np.float64]:
    row = np.zeros(MOTION_DIM)
    for stem, weight in weights.items():
        row[_columns(stem)] = weight
    return row


# Brows, frown, smile and cheeks, with the actions that come along in an actor's range of motion.
_EXPRESSIONS = np.stack(
    [
        _actions(browInnerUp=1.0, browOuterUp=1.0, eyeWide=0.25),
        _actions(browDown=1.0, eyeSquint=0.25, noseSneer=0.1),
        _actions(mouthSmile=1.0, cheekSquint=0.35, eyeSquint=0.12, mouthDimple=0.13),
        _actions(cheekSquint=1.0, eyeSquint=0.5),
    ]
)


def perform(task: WindowTask, latents: Floats) -> Floats:
    """Let the face of ``latents`` (HOP, 58), the network's for ``task``, live.

    Returns (HOP, 58 + CARRY_DIM): the same latents, the motion to show (58), and the state.
    """
    seed, first = task.state.seed, task.state.frames_done
    cues = speech_cues(task.window.features[PREFIX - _BEFORE :])
    face = _Face(task.state.carry, task.behaviour)
    states = np.empty((HOP, _STATE_DIM))
    lids = np.empty(HOP)
    for k, (normal, uniform) in enumerate(_noise(seed, first)):
        face.step(cues, _BEFORE + k, normal=normal, uniform=uniform)
        states[k], lids[k] = face.row(), face.lids()
    breath = 2 * np.pi * (seed % 997 / 997 + _BREATH_HZ / FPS * (first + np.arange(HOP)))
    shown = _motion(latents, states[:, :_COUNT], lids, breath=breath)
    return np.concatenate([latents, shown, states], axis=1, dtype=np.float32)


def _noise(seed: int, first: int) -> list[tuple[list[float], list[float]]]:
    """For each frame: standard normal and uniform numbers that depend on seed and frame alone."""
    block, offset = divmod(first, HOP)
    frames: list[tuple[list[float], list[float]]] = []
    for number in range(block, block + 1 + (offset > 0)):
        # A counter of its own keeps it apart from the network's noise.
        bits = np.random.Philox(key=np.array([seed, number], np.uint64), counter=[0, 0, 0, 1])
        random = np.random.Generator(bits)
        normals, uniforms = random.standard_normal((HOP, _NORMALS)), random.random((HOP, _UNIFORMS))
        frames += zip(normals.tolist(), uniforms.tolist(), strict=True)
    return frames[offset : offset + HOP]


@cache
def _transition() -> NDArray[np.float64]:
    """(4, _COUNT): x'' = ω²·(target - x) - 2ζω·x' over a frame, exactly: what distance from the
    target and speed become."""
    steps = np.empty((4, _COUNT))
    for i, (hertz, damping) in enumerate(zip(_HERTZ, _DAMPING, strict=True)):
        omega, below = 2 * np.pi * hertz, min(damping, 1 - 1e-6)  # 1 itself has no eigenvectors
        system = np.array([[0, 1], [-(omega**2), -2 * below * omega]], complex)
        values, vectors = np.linalg.eig(system)
        steps[:, i] = ((vectors * np.exp(values / FPS)) @ np.linalg.inv(vectors)).real.ravel()
    return steps


class _Face:
    """The followers and the memory of one session."""

    def __init__(self, carry: Floats, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        gains = behaviour.head_motion, behaviour.expressiveness, behaviour.gaze == "natural"
        feeling = [behaviour.emotion_strength * (behaviour.emotion == name) for name in EMOTIONS]
        if len(carry) == CARRY_DIM:
            state = carry[MOTION_DIM:].astype(np.float64)
            self._x, self._v, self._target = state[: 3 * _COUNT].reshape(3, _COUNT)
            self._memory = _Memory(*state[3 * _COUNT :].tolist())
        else:
            self._x, self._v, self._target = np.zeros((3, _COUNT))
            self._memory = _Memory()
            self._x[GAINS], self._x[FEELING] = gains, feeling
        self._target[GAINS], self._target[FEELING] = gains, feeling

    def row(self) -> NDArray[np.float64]:
        """(_STATE_DIM,) what `__init__` takes up again."""
        return np.concatenate([self._x, self._v, self._target, [*vars(self._memory).values()]])

    def lids(self) -> float:
        """How far a blink has closed the lids."""
        at = int(self._memory.since_blink)
        return _BLINK[at] if at < len(_BLINK) else 0.0

    def step(self, cues: SpeechCues, at: int, *, normal: list[float], uniform: list[float]) -> None:
        """One frame: row ``at`` of the cues is its own, four more are ahead."""
        memory = self._memory
        memory.since_accent += 1
        memory.since_bound += 1
        memory.since_blink += 1
        was = memory.speaking
        strength, high = self._listen(cues, at)
        started, ended = memory.speaking > was, memory.speaking < was
        self._settle()
        quiet = 0.0 if memory.speaking else 1.0
        self._target[STATE] = [quiet * (self._behaviour.state == name) for name in _STATES]
        if self._target[STATE.start]:
            self._nod_along(normal=normal, uniform=uniform)
        if strength > 0 and uniform[0] < _GESTURED:
            self._accent(strength, high, normal=normal, uniform=uniform)
        if started or ended:
            self._bound(ended, normal)
        self._shift_posture(started or ended, normal)
        self._shift_gaze(started, ended, normal=normal, uniform=uniform)
        self._blink(uniform)
        self._v[POSTURE] += _PUSH * normal[:3]
        away = self._x - self._target
        a, b, c, d = _transition()
        self._x, self._v = self._target + a * away + b * self._v, c * away + d * self._v

    def _listen(self, cues: SpeechCues, at: int) -> tuple[float, float]:
        """Follow the speech. Returns the strength of an accent of the next frame, or 0, and its
        pitch, in deviations."""
        memory = self._memory
        loud = cues.loudness[at : at + 5].tolist()
        smooth = cues.smooth[at : at + 3].tolist()
        voiced = (cues.voiced[at : at + 3] > 0.5).tolist()
        pitch = cues.pitch[at : at + 3].tolist()
        memory.peak = max(memory.peak - 1.5 / FPS, loud[4])
        least = max(memory.peak - _PAUSE_DB, _FLOOR_DB)
        if memory.speaking and max(loud) <= least:
            memory.speaking = memory.since_bound = 0.0
        elif not memory.speaking and min(loud[2:4]) > least:
            memory.speaking, memory.since_bound = 1.0, 0.0
        if loud[2] > least:
            memory.level += 0.08 * (smooth[2] - memory.level)
            memory.spread += 0.01 * (1.25 * abs(smooth[2] - memory.level) - memory.spread)
        if loud[2] > least and voiced[2]:
            if memory.voiced == 0:
                memory.pitch = pitch[2]
            away = pitch[2] - memory.pitch
            memory.pitch += (0.02 if memory.voiced == 25 else 0.1) * away
            memory.voiced = min(memory.voiced + 1, 25.0)
            memory.pitch_spread += 0.01 * (1.25 * abs(away) - memory.pitch_spread)
            memory.pitch_now += 0.4 * (away - memory.pitch_now)
        else:
            memory.pitch_now *= 0.93
        highs = [
            min(max((p - memory.pitch) / max(memory.pitch_spread, 1.5), -2.0), 2.5) if v else 0.0
            for p, v in zip(pitch, voiced, strict=True)
        ]
        before, now, after = (
            0.65 * (value - memory.level) / max(memory.spread, 1.5) + 0.35 * high
            for value, high in zip(smooth, highs, strict=True)
        )
        peaks = before < now >= after and now > _LEAST_ACCENT
        if not (peaks and memory.speaking and memory.since_accent >= _ACCENT_APART):
            return 0.0, 0.0
        memory.since_accent = 0.0
        return min(now, 2.0), max(highs)

    def _settle(self) -> None:
        """What has lasted long enough goes back to rest."""
        memory, target = self._memory, self._target
        memory.beat = max(0.0, memory.beat - 1)
        memory.brows = max(0.0, memory.brows - 1)
        memory.frown = max(0.0, memory.frown - 1)
        if memory.beat == 0:
            target[BEAT] = 0.0
        if memory.brows == 0:  # brows, and a little of the chin, rise with the voice
            target[BROWS] = 0.025 * min(max(memory.pitch_now, -2.0), 5.0) + 0.02
        if memory.frown == 0:
            target[FROWN] = 0.0

    def _accent(
        self, strength: float, high: float, *, normal: list[float], uniform: list[float]
    ) -> None:
        """A nod, or a chin that rises with the voice; often the brows, seldom a frown."""
        memory, target = self._memory, self._target
        size = _NOD * min(strength, 1.6) * max(0.3, 0.8 + 0.25 * normal[3])
        way = -0.6 if high > 1.1 and uniform[1] < 0.6 else 1.0
        target[BEAT] = size * way, 0.25 * size * normal[4], 0.2 * size * normal[5]
        memory.beat = 5.0 if strength > 1.2 else 4.0
        if uniform[2] < 0.45 + 0.2 * strength + 0.12 * max(high, 0.0):
            target[BROWS] = min(max(0.2 + 0.2 * strength + 0.07 * normal[6], 0.08), 0.65)
            memory.brows = 5.0 + 3.0 * abs(normal[7])
        elif uniform[2] > 0.9:
            target[FROWN] = 0.12 + 0.1 * strength
            memory.frown = 8.0

    def _nod_along(self, *, normal: list[float], uniform: list[float]) -> None:
        """A listener's nods, now and then two or three in a row."""
        memory = self._memory
        memory.nod -= 1
        if memory.nod <= 0:
            self._target[BEAT] = _LISTENER_NOD * max(0.5, 1.0 + 0.2 * normal[3]), 0.0, 0.0
            memory.beat = 4.0
            again = uniform[1] < _AGAIN
            memory.nod = _AGAIN_FRAMES if again else _NOD_FRAMES * math.exp(0.3 * normal[4])

    def _bound(self, ended: bool, normal: list[float]) -> None:
        """A phrase begins or ends: another smile, brows that rise to begin or to ask."""
        self._mood(0.14 + 0.08 * ended, normal)
        if not ended:
            self._target[BROWS], self._memory.brows = 0.18, 6.0
        elif self._memory.pitch_now > _QUESTION:
            self._target[BROWS], self._memory.brows = 0.38, 16.0

    def _mood(self, smile: float, normal: list[float]) -> None:
        self._target[SMILE] = min(max(smile + 0.2 * normal[6], 0.0), 0.5)
        self._target[CHEEKS] = min(max(0.06 + 0.09 * normal[7], 0.0), 0.3)

    def _shift_posture(self, bound: bool, normal: list[float]) -> None:
        memory, target = self._memory, self._target
        memory.posture -= 1
        if memory.posture > 0 and not (bound and memory.posture < _POSTURE_FRAMES):
            return
        drawn = _FARTHEST * np.tanh(np.array(normal[:3]) / _FARTHEST)
        drawn[2] += _TURN_TILTS * drawn[1]
        share = 1.0 if memory.speaking else _IDLE_SHARE
        target[POSTURE] = share * _POSTURE_SPREAD * drawn - _RETURN * self._x[POSTURE]
        target[POSTURE.start] -= _RAISED * memory.speaking
        usual = _POSTURE_FRAMES if memory.speaking else _IDLE_POSTURE_FRAMES
        memory.posture = usual * math.exp(0.45 * normal[3])
        self._mood(0.12 if memory.speaking else 0.04, normal)

    def _shift_gaze(
        self, started: bool, ended: bool, *, normal: list[float], uniform: list[float]
    ) -> None:
        """A saccade: away from the viewer, back, or within the viewer's face."""
        memory, target = self._memory, self._target
        memory.look -= 1
        if memory.look > 0 and not (started or ended):
            return
        share = _AVERSE if memory.speaking else _AVERSE_IDLE
        share = _AVERSE_START if started else _AVERSE_END if ended else share
        listening, thinking = target[STATE]
        share = _AVERSE_LISTENING if listening else share
        before = target[LOOK].copy()
        if thinking and uniform[3] < 0.8:
            target[LOOK] = np.array(_THOUGHT) + _THOUGHT_SPREAD * np.array(normal[4:6])
            memory.look = _THOUGHT_FRAMES * math.exp(0.4 * normal[6])
        elif uniform[3] < share:
            # Sizes are distributed exponentially (Lee, Badler & Badler 2002).
            size = _AVERTED * (0.4 - 0.6 * math.log(1 - 0.95 * uniform[4]))
            angle = 0.7 * normal[4]
            side = math.copysign(math.cos(angle), normal[5])
            target[LOOK] = size * side, 0.8 * size * math.sin(angle)
            memory.look = _AVERSION_FRAMES * math.exp(0.4 * normal[6])
        else:
            target[LOOK] = _REFIXATION * normal[4], _REFIXATION * normal[5]
            usual = _FIXATION_FRAMES if memory.speaking else _IDLE_FIXATION_FRAMES
            memory.look = usual * math.exp(0.5 * normal[6])
        moved = math.dist(before, target[LOOK])
        if moved > 0.12 and uniform[4] < _BLINK_WITH_GAZE * self._behaviour.blink_rate:
            self._close_lids()

    def _blink(self, uniform: list[float]) -> None:
        memory = self._memory
        share = _BLINKS_A_MINUTE / 60 / FPS
        if not memory.speaking and memory.since_bound < _END_FRAMES:
            share += _BLINK_AT_END / _END_FRAMES
        if uniform[5] < share * self._behaviour.blink_rate:
            self._close_lids()

    def _close_lids(self) -> None:
        if self._memory.since_blink >= _REFRACTORY:
            self._memory.since_blink = 0.0


def _motion(
    latents: Floats,
    x: NDArray[np.float64],
    lids: NDArray[np.float64],
    *,
    breath: NDArray[np.floating],
) -> NDArray[np.float64]:
    """(HOP, 58) to show: the network's latents with followers ``x`` (HOP, _COUNT), ``lids`` (HOP,)
    and the phase of the ``breath`` (HOP,)."""
    shown = latents.astype(np.float64)
    shown[:, _OWNED] = 0.0
    head, acting, wander = x[:, GAINS].T
    feeling, state = x[:, FEELING], x[:, STATE]
    degrees = x[:, POSTURE] + x[:, BEAT] + feeling @ EMOTION_POSTURES + state @ _STATE_POSTURES
    degrees[:, 0] += _BREATH_PITCH * np.sin(breath)
    degrees *= head[:, None]
    pitch, yaw, roll = np.radians(degrees).T
    shown[:, ROTATION] = np.radians(degrees)
    _, above, before = _PIVOT
    rise = _BREATH_RISE * head * np.sin(breath + 0.6)
    shown[:, TRANSLATION] = np.stack(
        [before * yaw - above * roll, rise - before * pitch, above * pitch], axis=1
    )
    acts = acting[:, None] * (x[:, [BROWS, FROWN, SMILE, CHEEKS]] + state @ _STATE_ACTS)
    acts[:, 2] *= 1.0 - feeling[:, 1:].sum(axis=1).clip(0.0, 1.0)  # only the happy go on smiling
    shown += acts @ _EXPRESSIONS
    shown[:, :ACTION_COUNT] += feeling @ EMOTION_ACTIONS
    across = wander * x[:, LOOK.start] - _COUNTER[0] * degrees[:, 1]
    up = wander * x[:, LOOK.start + 1] + _COUNTER[1] * degrees[:, 0]
    for columns, sign in ((_LEFT, 1.0), (_RIGHT, -1.0)):
        sides = np.stack([sign * across, -sign * across, up, -up], axis=1)
        shown[:, columns] += np.maximum(sides, 0.0)
    shown[:, _BLINKS] = lids[:, None]
    return shown

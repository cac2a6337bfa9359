"""Every command's help, and its error when its extra is not installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from fada.cli import COMMANDS, PLUGIN_COMMANDS
from tests.server.service import ROOT, environment
from tests.server.test_imports import HEAVY

# A package of each command's extra that it needs at once.
NEEDED = {
    "serve": "torch",
    "worker": "torch",
    "animate": "av",
    "engines": "torch",
    "track": "soundfile",
    "dataset": "torch",
    "corpus": "pocketsphinx",
    "train": "torch",
    "evaluate": "torch",
    "evaluate-video": "cv2",
}
LIGHT = ("serve", "api", "worker", "animate", "health", "doctor", "bench")


def fada(*words: str, missing: str | None = None) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; missing = {missing!r}\n"
        "if missing: sys.modules[missing] = None\n"
        "import atexit; from fada.cli import main\n"
        "atexit.register(lambda: print('LOADED', *{n.partition('.')[0] for n in sys.modules}))\n"
        f"main({list(words)!r})"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment({"FADA_REDIS_URL": "redis://127.0.0.1:1"}),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["", *LIGHT])
def test_help_is_light(command: str) -> None:
    done = fada(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert text.startswith(f"usage: fada {command}".rstrip())
    assert not HEAVY & set(loaded.split())


def test_help_names_every_command() -> None:
    assert {*COMMANDS, *PLUGIN_COMMANDS} <= set(fada("--help").stdout.split())


@pytest.mark.parametrize("command", NEEDED)
def test_a_missing_extra_is_named_in_one_line(command: str) -> None:
    words = {"animate": ["p.png", "a.wav", "-o", "out.mp4"], "engines": ["list"]}
    done = fada(command, *words.get(command, ()), missing=NEEDED[command])
    extra = COMMANDS[command].extra
    assert done.returncode == 1
    assert done.stderr == (
        f"fada {command} needs the extra \"{extra}\": pip install 'fada[{extra}]' "
        f"({NEEDED[command]} is not installed)\n"
    )


@pytest.mark.parametrize("command", PLUGIN_COMMANDS)
def test_a_missing_plugin_is_named_in_one_line(command: str) -> None:
    done = fada(command)
    distribution = PLUGIN_COMMANDS[command].distribution
    assert done.returncode == 1
    assert done.stderr == (
        f"fada: {command} comes with another package: pip install {distribution}\n"
    )
    project = tomllib.loads((ROOT / "integrations" / distribution / "pyproject.toml").read_text())
    assert command in project["project"]["entry-points"]["fada.commands"]


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    assert {command.extra for command in COMMANDS.values()} <= extras
    assert extras == {
        "serve", "train", "tensorrt", "tensorrt-datacenter", "fp8", "otel", "c2pa", "corpus",
        "docs", "dev", "webrtc",
    }  # fmt: skip


def test_flags_that_do_not_fit_are_reported_in_a_line() -> None:
    done = fada("train", "student", "--data", "nowhere", "--out", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("fada train: a student needs --teacher")
    assert "Traceback" not in done.stderr

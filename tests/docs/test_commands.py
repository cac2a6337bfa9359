"""Every `sh` and `python` block of the README and the guides runs, or states why not.

Python blocks, curl and the commands in `RUN` run over a pipeline that draws colours; tests/e2e has
the real models. Other `fada` commands are parsed by the command's own parser; make targets, extras
and bench programs must exist. ``<!-- not run: why -->`` before a block exempts it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from fada.cli import COMMANDS
from tests.server.service import FAKE, ROOT, Service, environment, running

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guide").glob("*.md")), ROOT / "docs/paper.md"]
RUN = (
    ("animate",),
    ("engines", "models"),
    ("engines", "list"),
    ("health", "api"),
    ("licenses",),
    ("verify",),
)
URL = "http://127.0.0.1:8000"
_FENCE = re.compile(
    r"(?:^<!-- not run: (.+) -->\n+)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Fenced code; ``exempt`` is why it is not run."""

    page: str
    language: str
    code: str
    exempt: str | None


def blocks(language: str) -> list[Block]:
    found = [
        Block(str(page.relative_to(ROOT)), kind, code, why or None)
        for page in PAGES
        if page.exists()
        for why, kind, code in _FENCE.findall(page.read_text())
    ]
    wanted = [one for one in found if one.language == language and one.exempt is None]
    return list({one.code: one for one in wanted}.values())


def name(block: Block) -> str:
    return f"{block.page}: {block.code.splitlines()[0][:40]}"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(FAKE) as service:
        yield service


def furnish(folder: Path) -> Path:
    """Make the examples reachable in ``folder`` as from the repository's root.

    The speech is its first second.
    """
    for name in ("model", "bench"):
        (folder / name).symlink_to(ROOT / name)
    examples = folder / "docs" / "examples"
    examples.mkdir(parents=True)
    for path in (ROOT / "docs" / "examples").glob("*.jpg"):
        (examples / path.name).symlink_to(path)
    sound, rate = soundfile.read(ROOT / "docs/examples/speech.wav", dtype="int16")
    soundfile.write(examples / "speech.wav", sound[:rate], rate)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return furnish(tmp_path)


def commands(code: str) -> list[list[str]]:
    """Each command's words, without settings before it and comments behind it."""
    found = []
    for line in re.sub(r"\\\n\s*", "", code).splitlines():
        for part in re.split(r" && | \| ", re.sub(r"^[A-Z_]+=\$\((.*)\)$", r"\1", line)):
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def runs(block: Block) -> bool:
    """Whether all of a block is run, rather than its commands parsed."""
    words = commands(block.code)
    return all(
        one[0] in ("curl", "grep")
        or (one[0] == "fada" and any(tuple(one[1:][: len(run)]) == run for run in RUN))
        for one in words
    )


def test_every_language_is_known() -> None:
    languages = {kind for page in PAGES if page.exists()
                 for _, kind, _ in _FENCE.findall(page.read_text())}  # fmt: skip
    assert languages <= {"sh", "python", "text", "js"}
    assert all(one.exempt for page in PAGES if page.exists()
               for one in [Block("", k, c, w) for w, k, c in _FENCE.findall(page.read_text())]
               if one.language == "js")  # fmt: skip


_RUN_ALL = """
import json, os, runpy, sys, traceback
errors = {}
for folder in sys.argv[1:]:
    os.chdir(folder)
    try:
        runpy.run_path("block.py", run_name="__main__")
    except BaseException:
        errors[folder] = traceback.format_exc()
print("\\n" + json.dumps(errors))
"""


@pytest.fixture(scope="module")
def finished(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each Python block, with `error` in it; one process runs all of them."""
    sound, rate = soundfile.read(ROOT / "docs/examples/speech.wav", dtype="int16")
    assert rate == 16_000
    folders = {}
    for block in blocks("python"):
        folder = furnish(tmp_path_factory.mktemp("block"))
        code = f"pcm = open('pcm', 'rb').read()\nplayer = open('player', 'wb')\n{block.code}"
        (folder / "pcm").write_bytes(sound[: 2 * rate].tobytes())
        (folder / "block.py").write_text(code.replace(URL, service.url))
        folders[block.code] = folder
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL, *map(str, folders.values())],
        env=environment(FAKE),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    for folder in folders.values():
        (folder / "error").write_text(errors.get(str(folder), ""))
    return folders


@pytest.mark.parametrize("block", blocks("python"), ids=name)
def test_python_runs(block: Block, finished: dict[str, Path]) -> None:
    folder = finished[block.code]
    assert not (error := (folder / "error").read_text()), error
    for made in ("talking.mp4", "player"):
        if made in block.code or f"{made}." in block.code:
            assert (folder / made).stat().st_size > 1_000


@pytest.mark.parametrize("block", [one for one in blocks("sh") if runs(one)], ids=name)
def test_commands_run(block: Block, service: Service, place: Path) -> None:
    if "curl" in block.code and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shims = (
        'curl() { command curl -sS --fail-with-body --max-time 300 "$@"; }\n'
        f'fada() {{ {shlex.quote(sys.executable)} -m fada.cli "$@"; }}\n'
    )
    code = block.code.replace(URL, service.url).replace(
        "--port 8000", f"--port {service.url.rsplit(':', 1)[1]}"
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shims + code],
        cwd=place,
        env={**environment(FAKE), "FADA_ENGINES": str(place / "engines")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if "talking.mp4" in code:
        assert (place / "talking.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("block", [one for one in blocks("sh") if not runs(one)], ids=name)
def test_commands_are_as_written(block: Block) -> None:
    for words in commands(block.code):
        check(words)


def check(words: list[str]) -> None:
    """Raises for a command that does not exist, or does not take its arguments."""
    program, *rest = words
    if program == "fada":
        parse(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
        for one in rest[1:]:
            variable, _, value = one.partition("=")
            assert f"$({variable})" in (ROOT / "Makefile").read_text()
            if variable == "ARGS" and rest[0] == "serve":
                parse(["serve", *value.split()])
    elif words[:2] == ["pip", "install"]:
        check_extras(rest[1:])
    elif program == "python" and rest[0].startswith("bench/"):
        check_flags(ROOT / rest[0], rest[1:])
    elif program.startswith("bench/"):
        assert os.access(ROOT / program, os.X_OK)
    elif program == "cp":
        pass
    else:
        pytest.fail(f"nothing checks {shlex.join(words)!r}")


def parse(words: list[str]) -> None:
    command = COMMANDS[words[0]]
    try:
        module = importlib.import_module(f"fada.cli.{command.module}")
    except ModuleNotFoundError as error:
        if command.extra != "corpus":
            raise
        pytest.skip(f"fada[{command.extra}] is not installed: {error.name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.parse_args([word for word in words[1:] if word != "…"])


def check_extras(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for word in words:
        for names in re.findall(r"\[([\w,]+)\]", word):
            assert set(names.split(",")) <= set(extras)
        if word.startswith("./"):
            assert (ROOT / word / "pyproject.toml").is_file()


def check_flags(program: Path, words: list[str]) -> None:
    text = program.read_text()
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{program.name} has no {word}"

"""`fada engines` builds, lists, and reports what is missing."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from engines.base import BACKENDS
from fada.cli import engines, main
from tests.engines.networks import EXPORT_ONLY


def run(*args: str) -> int:
    parser = argparse.ArgumentParser()
    engines.add_arguments(parser)
    return engines.run(parser.parse_args(args))


def test_batches_on_the_command_line() -> None:
    assert engines.batch_range("1:8") == range(1, 9)
    assert engines.batch_range("4") == range(4, 5)
    for text in ("8:1", "0:4", "a", "1:b", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="like 1:8"):
            engines.batch_range(text)


def test_the_command_builds_and_lists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKENDS, "compiled", EXPORT_ONLY)
    args = ["--model", "video-decoder", "--tiny", "--backend", "compiled", "--batch", "1:2"]
    assert run("list", "--out", str(tmp_path)) == 0
    assert run("build", *args, "--out", str(tmp_path)) == 0
    assert run("list", "--out", str(tmp_path)) == 0
    assert run("models") == 0
    printed = capsys.readouterr().out
    assert f"no engines in {tmp_path}" in printed
    assert "video-decoder-tiny: compiled fp32, batches 1 to 2, on cpu, off by" in printed
    assert "fits this machine" in printed
    assert "motion-fast" in printed.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_what_is_missing() -> None:
    args = ["engines", "build", "--model", "video-decoder", "--tiny", "--backend", "tensorrt"]
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == "fada engines: tensorrt cannot run here: there is no GPU"

"""A model of one's own on the real engine and renderer, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fada.cli import main
from tests.model.test_models import write
from tests.server.media_files import sound
from tests.server.media_probe import probe


@pytest.fixture(autouse=True)
def settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the environment variables that the command sets from its flags."""
    for name in ("FADA_WEIGHTS", "FADA_MODELS", "FADA_MODEL_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def ended(words: list[str | Path]) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_own_weights_make_a_video(examples: Path, tmp_path: Path) -> None:
    weights, audio, out = write(tmp_path / "own.safetensors"), tmp_path / "a.flac", tmp_path / "o"
    audio.write_bytes(sound(0.8))
    words: list[str | Path] = ["animate", examples / "monalisa.jpg", audio, "-o", out]
    assert ended([*words, "--size", "128", "--model", "own", "--weights", weights]) == 0
    assert len(probe(out.read_bytes()).times_s) == 20
    code = ended([*words, "--model", "other", "--weights", weights])
    assert code == "fada: invalid_option: model = 'other', expected one of own"


def test_unusable_weights_fail_with_one_line(examples: Path, tmp_path: Path) -> None:
    teacher, audio = write(tmp_path / "t.safetensors", "teacher"), tmp_path / "a.flac"
    audio.write_bytes(sound(0.2))
    words: list[str | Path] = ["animate", examples / "monalisa.jpg", audio, "-o", tmp_path / "o"]
    code = str(ended([*words, "--weights", teacher]))
    assert (
        code.startswith(f"fada: invalid_option: {teacher} holds a teacher")
        and len(code.splitlines()) == 1
    )
    assert "no weights at" in str(ended([*words, "--weights", tmp_path / "none"]))


def test_unknown_models_fail_before_redis_is_contacted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FADA_REDIS_URL", "redis://127.0.0.1:1")
    code = str(ended(["worker", "--model", "motion-fast,nobody"]))
    assert code.startswith("fada: model = 'nobody', expected one of")

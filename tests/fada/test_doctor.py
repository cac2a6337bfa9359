"""`fada doctor` names what is missing and the command that brings it, and never crashes."""

from __future__ import annotations

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fada import probes
from fada.cli import doctor, main
from tests.fada.test_machine import smi

CPU = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
L4 = "NVIDIA L4, 8.9, 23034, 580.65.06"
H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.95.05"
OLD = "NVIDIA L4, 8.9, 23034, 550.54.15"
ANSWERS: dict[str, Any] = {
    "torch": {"version": "2.13.0", "cuda": "13.0", "gpus": ["a card"]},
    "openvino": {"version": "2026.4.1", "precisions": ["fp32"]},
    "video": {"version": "17.0.1", "ffmpeg": "8.0.1", "encoders": {"x264": None, "nvenc": "why"}},
    "engines": {"path": "/engines", "stored": 0},
    "students": {
        "motion-fast": {
            "engine": "openvino fp32", "reason": "it is the fastest", "refused": ["not this"],
            "builds": "tensorrt fp16", "build_failed": None,
        }
    },
}  # fmt: skip
RTX = {"tensorrt_rtx": "1.5.0.114", "torch_tensorrt_rtx": "2.13.0"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without a card, where every package answers."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FADA_ENGINES", str(tmp_path / "engines"))
    for name in ("FADA_REDIS_URL", "FADA_MODELS", "FADA_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(probes, "ask", ANSWERS.__getitem__)
    return monkeypatch


def asked(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """The exit status of `fada doctor --json`, and what it printed."""
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def test_a_machine_that_lacks_nothing_can_serve(
    here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = asked(capsys)
    assert (status, said["serves"], said["problems"]) == (0, True, [])
    assert said["students"]["motion-fast"]["engine"] == "openvino fp32"
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    text = capsys.readouterr().out
    assert not ended.value.code
    assert "motion-fast      openvino fp32: it is the fastest; builds tensorrt fp16" in text
    assert "not this" in text and text.endswith("This machine can serve.\n")


@pytest.mark.parametrize(
    ("card", "changed", "what", "remedy"),
    [
        (L4, {"tensorrt": {}}, "TensorRT for NVIDIA L4 is not installed", "[tensorrt]"),
        (H100, {"tensorrt": RTX}, "TensorRT for NVIDIA H100", "uninstall -y tensorrt_rtx"),
        (H100, {"tensorrt": {}}, "TensorRT for NVIDIA H100", "[tensorrt-datacenter]"),
        (OLD, {}, "its driver is 550.54.15, expected 580", "driver 580 or later"),
        (CPU, {}, "couldn't communicate with the NVIDIA driver", "reinstall NVIDIA's driver"),
        (
            L4,
            {"tensorrt": RTX, "torch": {"version": "2.13.0+cpu", "cuda": None, "gpus": []}},
            "torch 2.13.0+cpu is built without CUDA",
            "pip install --force-reinstall torch==2.13.0 && ",
        ),
        (
            L4,
            {
                "tensorrt": RTX,
                "torch": {"version": "2.13.0", "cuda": "13.0", "gpus": [], "why_no_gpu": "hidden"},
            },
            "torch finds no GPU: hidden",
            "make the card visible",
        ),
        (
            L4,
            {"tensorrt": RTX, "engines": {"problem": "PermissionError: /engines"}},
            "engines cannot be stored: PermissionError: /engines",
            "FADA_ENGINES",
        ),
        (L4, {"tensorrt": RTX}, None, None),
    ],
)
def test_a_card_that_is_not_used_is_a_note_with_its_command(
    here: pytest.MonkeyPatch,
    tmp_path: Path,
    card: str,
    changed: dict[str, Any],
    what: str | None,
    remedy: str | None,
) -> None:
    smi(tmp_path, card)
    facts = {**doctor.gather(_options()), **changed}
    found = doctor.problems(facts)
    assert not any(problem.fatal for problem in found)
    assert [(p.what, p.remedy) for p in found if what is None] == []
    if what is not None and remedy is not None:
        assert any(what in p.what and remedy in p.remedy for p in found), found
    assert "This machine can serve." in doctor.lines(facts, found)


def test_the_base_install_names_the_extra_that_is_missing(
    here: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smi(tmp_path, L4)
    here.setattr(doctor, "missing_packages", lambda: ["av", "torch"])
    here.setattr(probes, "ask", None)  # nothing is asked
    status, said = asked(capsys)
    assert (status, said["serves"]) == (1, False)
    first = said["problems"][0]
    assert first["what"] == "packages of workers are missing: av, torch"
    assert "[tensorrt]" in first["remedy"]


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [
        ("FADA_WORKERS", "many", "FADA_WORKERS"),
        ("FADA_ENCODER", "nvenc", "FADA_ENCODER = nvenc: why"),
        ("FADA_REDIS_URL", "unix:///nowhere/redis", "does not reply"),
    ],
)
def test_a_setting_that_cannot_work_is_fatal(
    here: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    value: str,
    what: str,
) -> None:
    here.setenv(setting, value)
    here.setattr(doctor, "_REDIS_TIMEOUT_S", 0.0)
    status, said = asked(capsys)
    assert status == 1 and what in said["problems"][0]["what"]


def test_what_fails_in_a_package_is_a_problem_and_no_crash(
    here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.setattr(probes, "ask", lambda name: {"problem": f"{name} ended with status -4"})
    status, said = asked(capsys)
    assert status == 1
    assert [p["what"].split(":")[0] for p in said["problems"]] == [
        "torch",
        "encoding",
        "the students",
    ]
    assert "--force-reinstall" in said["problems"][0]["remedy"]


def test_a_probe_that_ends_badly_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probes.ask("nothing") == {"problem": "KeyError: 'nothing'"}
    false = str(shutil.which("false"))
    for program, what in ((false, "status 1: no message"), ("/nowhere", "FileNotFound")):
        monkeypatch.setattr("sys.executable", program)
        assert what in probes.ask("torch")["problem"]


def test_students_take_the_engine_that_a_worker_would_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from model import models
    from model.motion.rollout import MotionOnly

    monkeypatch.setenv("FADA_ENGINES", str(tmp_path))
    monkeypatch.setenv("FADA_MODELS", "motion-fast")
    monkeypatch.setattr(models, "load", partial(models.load, space=MotionOnly()))
    with caplog.at_level("INFO", "engines.select"):
        (student,) = probes.students().values()
    assert caplog.messages[-1] == f"using engine {student['engine']}: {student['reason']}"
    assert student["builds"] is None or "motion-fast" in student["builds"]


def test_a_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FADA_ENGINES", str(tmp_path / "engines"))
    assert probes.engines() == {"path": str(tmp_path / "engines"), "stored": 0}
    (tmp_path / "file").touch()
    monkeypatch.setenv("FADA_ENGINES", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        probes.engines()


def test_encoders_are_opened() -> None:
    encoders = probes.video()["encoders"]
    assert encoders["x264"] is None
    assert encoders["nvenc"] != ""  # None or a reason


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return parser.parse_args([])

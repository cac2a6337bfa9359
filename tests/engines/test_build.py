"""Engines are really built, stored, loaded again and selected; inaccurate ones are discarded."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from engines.base import BACKENDS, ProgramNet
from engines.build import TOLERANCES, BuildSpec, build, parity_of
from engines.export import graphs_of
from engines.select import best, fitting
from model.diffusion.cached_context import CachedContext
from tests.engines.networks import EXPORT_ONLY, SmallNet, predict, small_inputs, small_model

F = TypeVar("F", bound=Callable[..., object])


def test_an_error_is_the_worst_rows_share_of_its_spread() -> None:
    net = SmallNet().eval().requires_grad_(False)
    graphs = {graph.name: graph for graph in graphs_of(net, small_inputs(2))}

    def shifted(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made = graphs["denoise"](inputs)[0].clone()
        made[-1] += 0.5 * made[-1].std()
        return (made,)

    def broken(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (graphs["denoise"](inputs)[0] * float("nan"),)

    off = parity_of(graphs | {"denoise": shifted}, net, small_inputs, batch=range(1, 5))
    assert off == {"1": pytest.approx(0.5), "3": pytest.approx(0.5), "4": pytest.approx(0.5)}
    nothing = parity_of(graphs | {"denoise": broken}, net, small_inputs, batch=range(2, 3))
    assert nothing["2"] != nothing["2"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (("onnx", "fp32", range(1, 9)), "backend = 'onnx', expected one of tensorrt, compiled"),
        (("compiled", "int4", range(1, 9)), "precision = 'int4', expected one of fp32"),
        (
            ("compiled", "fp8", range(1, 9)),
            "precision = 'fp8', expected one of fp32, fp16, bf16 for the backend compiled",
        ),
        (("compiled", "fp32", range(0, 9)), "expected sizes from 1 up"),
        (("compiled", "fp32", range(3, 3)), "expected sizes from 1 up"),
    ],
)
def test_a_bad_spec_is_refused(spec: tuple[str, str, range], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BuildSpec(*spec)


def test_fp8_is_for_tensorrt_alone() -> None:
    assert BuildSpec("tensorrt", "fp8", range(1, 9)).precision == "fp8"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_without_a_gpu_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensorrt cannot run here: there is no GPU"):
        build(small_model(), BuildSpec("tensorrt", "fp16", range(1, 9)), tmp_path)
    assert list(tmp_path.iterdir()) == []


NO_COMPILER = shutil.which("g++") is None


def compiles(test: F) -> F:
    """A test that compiles: slow, needs a compiler, and prints the compiler's own warnings."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(NO_COMPILER, reason="there is no C++ compiler"),
        pytest.mark.filterwarnings("ignore"),
    ):
        test = mark(test)
    return test


@pytest.fixture
def export_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "compiled", EXPORT_ONLY)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_is_built_stored_and_selected(
    export_only: None, tmp_path: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_build_to_selection(precision, tmp_path, caplog)


@compiles
def test_a_compiled_engine_is_built_stored_and_selected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_build_to_selection("fp32", tmp_path, caplog)


def check_build_to_selection(precision: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    place, manifest = build(small_model(), BuildSpec("compiled", precision, range(1, 5)), root)
    assert list(manifest.parity) == ["1", "3", "4"]
    assert {path.name for path in place.iterdir()} == {
        "manifest.json",
        "context.pt2",
        "denoise.pt2",
    }
    again = small_model()
    assert fitting(again.net, again.inputs, root) == [(place, manifest)]
    with torch.no_grad():
        for parameter in again.net.parameters():
            parameter += 1.0
    assert fitting(again.net, again.inputs, root) == []
    with caplog.at_level(logging.INFO):
        engine = _best_without_openvino(root)
    assert f"using engine compiled {precision}, batches 1 to 4" in caplog.text
    net, rows = small_model().net, small_inputs(6)
    truth = net(rows["x_t"], rows["t"], {"c": rows["c"]})
    error = float((predict(engine, rows) - truth).abs().max())
    assert error < (1e-5 if precision == "fp32" else 0.1)


def _best_without_openvino(root: Path) -> CachedContext[Any]:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("not today")

    model = small_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.select.cached", fails)
        engine = best(model.net, model.inputs, root)
    assert isinstance(engine.net, ProgramNet)
    return engine


def test_an_inaccurate_engine_is_discarded(
    export_only: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "bf16", 1e-9)
    with pytest.raises(ValueError, match=r"error is .* of the output's spread, .* at most 1e-09"):
        build(small_model(), BuildSpec("compiled", "bf16", range(1, 3)), tmp_path)
    assert list(tmp_path.iterdir()) == []

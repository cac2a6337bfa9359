"""Engines are really built, kept, loaded again and chosen; what is off is thrown away."""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from engines.backends import BACKENDS
from engines.build import TOLERANCES, BuildSpec, build, compared
from engines.example_inputs import ExampleModel, example_model, motion_inputs, names
from engines.export import Graph, Program, exported, graphs_of
from engines.programs import ProgramEngine
from engines.select import best, fitting
from fada.cli import engines
from model.diffusion.denoiser import Conditions
from model.motion.network import MotionNet, NetConfig

F = TypeVar("F", bound=Callable[..., object])


class Small(nn.Module):
    """A network in two halves that compiles in seconds; its context's batch is not in front."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.told, self.out = nn.Linear(4, 6), nn.Linear(9, 3)

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        return (self.told(cond["c"].to(self.told.weight.dtype)).T,)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        told = context[0].T
        both = torch.cat([(x_t * t[:, None]).to(told.dtype), told], dim=1)
        return torch.as_tensor(self.out(both).tanh()).to(x_t.dtype)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self.denoise(x_t, t, self.context(cond))


def small_inputs(rows: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(rows)
    return {
        "x_t": torch.randn(rows, 3, generator=random),
        "t": torch.rand(rows, generator=random),
        "c": torch.randn(rows, 4, generator=random),
    }


def small() -> ExampleModel:
    return ExampleModel("small", Small().eval().requires_grad_(False), small_inputs)


def equal(made: Tensor, truth: Tensor, tolerance: float) -> bool:
    return bool((made - truth).abs().max() < tolerance)


def test_a_network_becomes_functions_with_their_batch() -> None:
    context, denoise = graphs_of(Small().eval(), small_inputs(3))
    assert (context.name, context.names, context.axes) == ("context", ("c",), (0,))
    assert (denoise.names, denoise.axes) == (("x_t", "t", "told.0"), (0, 0, 1))
    assert [tuple(x.shape) for x in denoise.rows(5)] == [(5, 3), (5,), (6, 5)]
    with pytest.raises(ValueError, match="an example of 1 rows, expected two or more"):
        graphs_of(Small(), small_inputs(1))
    with pytest.raises(ValueError, match="Linear has no halves"):
        graphs_of(nn.Linear(3, 3), {"x_t": torch.ones(2, 3)})


@pytest.mark.parametrize("batch", [range(1, 9), range(1, 2), range(4, 5)])
def test_one_export_takes_every_batch(batch: range) -> None:
    net = Small().eval().requires_grad_(False)
    programs = {}
    for graph in graphs_of(net, small_inputs(2)):
        module = exported(graph, batch).module()
        programs[graph.name] = lambda inputs, module=module: _tuple(module(*inputs))
    assert max(compared(net, programs, small_inputs, batch).values()) < 1e-6


def _tuple(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (made,) if isinstance(made, Tensor) else made


class Through(Small):
    """Half of its context is a condition as it came."""

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        return (*super().context(cond), cond["c"].to(self.told.weight.dtype))

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return super().denoise(x_t, t, context[:1]) + context[1][:, :3]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_function_hands_an_input_on(dtype: torch.dtype) -> None:
    """TensorRT refuses such functions."""
    net = Through().eval().requires_grad_(False)
    graphs = {graph.name: graph for graph in graphs_of(net, small_inputs(2))}
    assert max(compared(net, graphs, small_inputs, range(1, 4)).values()) < 1e-6
    context = graphs_of(net.to(dtype), small_inputs(2))[0]
    program = exported(context, range(1, 4)).run_decompositions()
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    for made in output.args[0]:
        assert "select" in str(made.target) or "permute" in str(made.target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_motion_student_exports_with_any_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=16, heads=2, blocks=1, guided=True))
    net.eval().requires_grad_(False).to(dtype)
    for graph in graphs_of(net, motion_inputs(2, guided=True)):
        module = exported(graph, range(1, 9)).module()
        for rows in (1, 3):
            made = _tuple(module(*graph.rows(rows)))
            for a, b in zip(made, graph(graph.rows(rows)), strict=True):
                torch.testing.assert_close(a, b)


def test_a_batch_that_is_too_large_goes_in_portions() -> None:
    net = Small().eval().requires_grad_(False)
    graphs = {graph.name: graph for graph in graphs_of(net, small_inputs(2))}
    engine = ProgramEngine(("c",), graphs, most=3, device=torch.device("cpu"))
    for rows in (1, 3, 7):
        inputs = small_inputs(rows)
        truth = net(inputs["x_t"], inputs["t"], {"c": inputs["c"]})
        assert equal(engine(**inputs), truth, 1e-6)


def test_an_error_is_the_worst_rows_share_of_its_spread() -> None:
    net = Small().eval().requires_grad_(False)
    graphs = {graph.name: graph for graph in graphs_of(net, small_inputs(2))}

    def shifted(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made = graphs["denoise"](inputs)[0].clone()
        made[-1] += 0.5 * made[-1].std()
        return (made,)

    def broken(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (graphs["denoise"](inputs)[0] * float("nan"),)

    off = compared(net, graphs | {"denoise": shifted}, small_inputs, range(1, 5))
    assert off == {"1": pytest.approx(0.5), "3": pytest.approx(0.5), "4": pytest.approx(0.5)}
    nothing = compared(net, graphs | {"denoise": broken}, small_inputs, range(2, 3))
    assert nothing["2"] != nothing["2"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (("onnx", "fp32", range(1, 9)), "backend = 'onnx', expected one of compiled, tensorrt"),
        (("compiled", "int4", range(1, 9)), "precision = 'int4', expected one of fp32"),
        (("compiled", "fp8", range(1, 9)), "fp8 is TensorRT's"),
        (("compiled", "fp32", range(0, 9)), "expected sizes from 1 up"),
        (("compiled", "fp32", range(3, 3)), "expected sizes from 1 up"),
    ],
)
def test_a_bad_order_is_refused(spec: tuple[str, str, range], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BuildSpec(*spec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensorrt cannot run here: there is no GPU"):
        build(small(), BuildSpec("tensorrt", "fp16", range(1, 9)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_networks_by_name() -> None:
    assert "motion-fast" in names()
    for name in ("video-student", "video-teacher", "video-reference", "video-decoder"):
        tiny = example_model(name, tiny=True)
        assert tiny.name == f"{name}-tiny"
        assert graphs_of(tiny.net, tiny.inputs(2))
        assert all(parameter.any() for parameter in tiny.net.parameters())
    with pytest.raises(ValueError, match="no network is called 'nobody', there are: motion-"):
        example_model("nobody")


def test_batches_on_the_command_line() -> None:
    assert engines.batch_range("1:8") == range(1, 9)
    assert engines.batch_range("4") == range(4, 5)
    for text in ("8:1", "0:4", "a", "1:b", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="like 1:8"):
            engines.batch_range(text)


NO_COMPILER = shutil.which("g++") is None


def compiles(test: F) -> F:
    """A test that compiles: slow, in need of a compiler, and with the compiler's own warnings."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(NO_COMPILER, reason="there is no C++ compiler"),
        pytest.mark.filterwarnings("ignore"),
    ):
        test = mark(test)
    return test


class Exported:
    """A backend that compiles nothing: what torch.export wrote down is what runs."""

    SUFFIX = ".pt2"

    def build(self, graph: Graph, program: ExportedProgram, batch: range, path: Path) -> None:
        torch.export.save(program, path)

    def load(self, path: Path) -> Program:
        module = torch.export.load(path).module()
        return lambda inputs: _tuple(module(*inputs))


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "compiled", Exported())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_is_built_kept_and_chosen(
    nothing_compiled: None, tmp_path: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_the_whole_way(precision, tmp_path, caplog)


@compiles
def test_a_compiled_engine_is_built_kept_and_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_the_whole_way("fp32", tmp_path, caplog)


def check_the_whole_way(precision: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    place, manifest = build(small(), BuildSpec("compiled", precision, range(1, 5)), root)
    assert list(manifest.parity) == ["1", "3", "4"]
    assert {path.name for path in place.iterdir()} == {
        "manifest.json",
        "context.pt2",
        "denoise.pt2",
    }
    again = small()
    assert fitting(again.net, again.inputs, root) == [(place, manifest)]
    with torch.no_grad():
        for parameter in again.net.parameters():
            parameter += 1.0
    assert fitting(again.net, again.inputs, root) == []
    with caplog.at_level(logging.INFO):
        engine = _chosen_without_openvino(small(), root)
    assert f"engine: compiled {precision}, batches 1 to 4" in caplog.text
    net, rows = small().net, small_inputs(6)
    truth = net(rows["x_t"], rows["t"], {"c": rows["c"]})
    assert equal(engine(**rows), truth, 1e-5 if precision == "fp32" else 0.1)


def _chosen_without_openvino(example_model: ExampleModel, root: Path) -> ProgramEngine:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("not today")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.select.OpenVINOEngine", fails)
        engine = best(example_model.net, example_model.inputs, root)
    assert isinstance(engine, ProgramEngine)
    return engine


def test_what_is_off_is_thrown_away(
    nothing_compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "bf16", 1e-9)
    with pytest.raises(ValueError, match=r"off by .* of the spread, at most 1e-09 is accepted"):
        build(small(), BuildSpec("compiled", "bf16", range(1, 3)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_builds_and_lists(
    nothing_compiled: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    engines.add_arguments(parser)
    words = ["--model", "video-decoder", "--tiny", "--backend", "compiled", "--batch", "1:2"]
    assert engines.run(parser.parse_args(["list", "--out", str(tmp_path)])) == 0
    assert engines.run(parser.parse_args(["build", *words, "--out", str(tmp_path)])) == 0
    assert engines.run(parser.parse_args(["list", "--out", str(tmp_path)])) == 0
    assert engines.run(parser.parse_args(["models"])) == 0
    said = capsys.readouterr().out
    assert f"no engines in {tmp_path}" in said
    assert "video-decoder-tiny: compiled fp32, batches 1 to 2, on cpu, off by" in said
    assert "fits this machine" in said
    assert "motion-fast" in said.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    engines.add_arguments(parser)
    words = ["--model", "video-decoder", "--tiny", "--backend", "tensorrt"]
    assert engines.run(parser.parse_args(["build", *words, "--out", str(tmp_path)])) == 1
    assert "fada: tensorrt cannot run here: there is no GPU" in capsys.readouterr().err

"""What only a GPU can show: engines agree there, and CUDA graphs give what was captured."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from engines.base import ProgramNet
from engines.build import BuildSpec, build, load
from engines.cuda_graphs import CapturedProgram
from engines.example_inputs import VIDEO, example_model
from engines.export import graphs_of
from engines.select import best
from tests.engines.networks import predict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore"),  # the compilers' own
]
BACKENDS = [
    "compiled",
    pytest.param(
        "tensorrt",
        marks=pytest.mark.skipif(
            find_spec("torch_tensorrt") is None, reason="torch-tensorrt is not installed"
        ),
    ),
]


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_engines_agree_with_their_networks(
    backend: str, precision: str, name: str, tmp_path: Path
) -> None:
    chosen = example_model(name, tiny=True)
    place, manifest = build(chosen, BuildSpec(backend, precision, range(1, 5)), tmp_path)
    assert manifest.machine["device"] == "cuda"
    programs = load(place, manifest)
    for graph in graphs_of(chosen.net, {n: x.cuda() for n, x in chosen.inputs(2).items()}):
        rows = graph.rows(2)
        made, replayed = programs[graph.name](rows), CapturedProgram(programs[graph.name])
        for _ in range(2):
            for a, b in zip(made, replayed(rows), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_student_is_served_by_what_was_built_here(backend: str, tmp_path: Path) -> None:
    chosen = example_model("motion-fast")
    build(chosen, BuildSpec(backend, "fp16", range(1, 9)), tmp_path)
    again = example_model("motion-fast")
    engine = best(again.net, again.inputs, tmp_path)
    assert isinstance(engine.net, ProgramNet)
    for rows in (1, 8, 11):
        inputs = again.inputs(rows)
        truth, made = predict(again.net, inputs), predict(engine, inputs)
        assert made.device == truth.device
        assert float((made - truth).square().mean().sqrt() / truth.std()) < 0.02

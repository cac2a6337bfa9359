"""Compiled programs run as a network; backends know whether and where they can run."""

from __future__ import annotations

import pytest
import torch

from engines.base import BACKENDS, ProgramNet, backend_named, machines
from engines.build import PRECISIONS
from engines.export import graphs_of
from model.diffusion.cached_context import CachedContext
from tests.engines.networks import SmallNet, predict, small_inputs


def test_a_batch_that_is_too_large_goes_in_portions() -> None:
    net = SmallNet().eval().requires_grad_(False)
    graphs = {graph.name: graph for graph in graphs_of(net, small_inputs(2))}
    made = ProgramNet(("c",), graphs, most=3, device=torch.device("cpu"))
    engine = CachedContext(made)
    for rows in (1, 3, 7):
        inputs = small_inputs(rows)
        truth = net(inputs["x_t"], inputs["t"], {"c": inputs["c"]})
        assert float((predict(engine, inputs) - truth).abs().max()) < 1e-6


def test_every_precision_has_a_backend_and_a_tolerance() -> None:
    for backend in BACKENDS.values():
        assert backend.precisions[-1] == "fp32"
        assert set(backend.precisions) <= set(PRECISIONS)
    assert {p for backend in BACKENDS.values() for p in backend.precisions} == set(PRECISIONS)


def test_compiled_code_runs_everywhere_and_is_for_this_processor() -> None:
    compiled = backend_named("compiled")
    assert compiled.unavailable() is None
    assert {"system", "device", "torch", "processor"} <= set(compiled.machine())
    assert machines()["compiled"] == compiled.machine()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_needs_a_gpu() -> None:
    assert backend_named("tensorrt").unavailable() == "there is no GPU"
    assert "tensorrt" not in machines()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend = 'onnx', expected one of tensorrt, compiled"):
        backend_named("onnx")

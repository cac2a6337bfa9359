"""TensorRT converts every operator of every served network and builds its engine, without a GPU.

What these engines compute, only a GPU can show: `bench/gpu.sh`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from engines import fp8, tensorrt
from engines.base import BACKENDS
from engines.build import in_precision
from engines.example_inputs import VIDEO, ExampleModel, example_model, motion_inputs
from engines.export import Graph, export, graphs_of
from engines.provision import EngineBuild
from engines.select import motion_net
from model.models import WEIGHTS, motion_student
from model.motion.network import MotionNet, NetConfig
from tests.engines.without_gpu import builder

BATCH = range(1, 9)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("torch_tensorrt") is None,
        reason="torch-tensorrt is not installed: pip install 'fada[tensorrt]'",
    ),
    pytest.mark.filterwarnings("ignore"),  # torch-tensorrt's own, of every kind
]


@pytest.fixture(autouse=True)
def a_builder() -> Iterator[None]:
    with builder():
        yield


def networks() -> dict[str, ExampleModel]:
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=32, heads=2, blocks=1, guided=True)).eval()
    student = ExampleModel("motion", net, lambda rows: motion_inputs(rows, guided=True))
    return {"motion": student} | {name: example_model(name, tiny=True) for name in VIDEO}


@pytest.mark.parametrize("name", ["motion", *VIDEO])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_operator_is_covered_and_the_engine_is_built(
    name: str, precision: str, tmp_path: Path
) -> None:
    chosen = networks()[name]
    net = in_precision(chosen.net.requires_grad_(False), precision, chosen.inputs)
    for graph in graphs_of(net, chosen.inputs(2)):
        check(graph, precision, tmp_path)


@pytest.mark.skipif(
    find_spec("modelopt") is None, reason="ModelOpt is not installed: pip install 'fada[fp8]'"
)
@pytest.mark.parametrize("name", ["motion", *VIDEO])
def test_fp8_is_covered_and_built(name: str, tmp_path: Path) -> None:
    chosen = networks()[name]
    net = in_precision(chosen.net.requires_grad_(False), "fp8", chosen.inputs)
    for graph in graphs_of(net, chosen.inputs(2)):
        check(graph, "fp8", tmp_path)


@pytest.mark.parametrize("name", ["motion-fast", "motion-balanced"])
def test_what_a_worker_builds_of_a_shipped_student(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its real size, by all steps but the comparison, which needs a GPU."""
    on_cpu = replace(BACKENDS["tensorrt"], devices=("cpu",), packages=("torch",))
    monkeypatch.setitem(BACKENDS, "tensorrt", on_cpu)
    monkeypatch.setattr("engines.build._measured", lambda made, *_, **__: made)
    weights = motion_student(WEIGHTS / f"{name}.safetensors")
    wanted = EngineBuild(name, motion_net(weights), tmp_path)
    wanted.run()
    assert wanted.title == f"tensorrt fp16, batches 1 to 64 of {name}"
    assert wanted.stored()
    for plan in ("context.plan", "denoise.plan"):
        assert (wanted.place / plan).stat().st_size > 5_000_000  # it holds the weights


def check(graph: Graph, precision: str, folder: Path) -> None:
    with fp8.exportable(precision):
        program = export(graph, BATCH)
    able, every = coverage(program)
    print(f"{graph.name}, {precision}: {able} of {every}")  # docs/guide/engines.md
    assert able == every > 0
    plan = folder / f"{graph.name}{BACKENDS['tensorrt'].suffix}"
    tensorrt.build(program, plan, graph=graph, batch=BATCH)
    assert plan.stat().st_size > 0


def coverage(program: ExportedProgram) -> tuple[int, int]:
    """How many operators of the lowered ``program`` have converters, and how many there are."""
    settings: Any = importlib.import_module("torch_tensorrt.dynamo._settings").CompilationSettings()
    lowering: Any = importlib.import_module("torch_tensorrt.dynamo.lowering")
    partitioning: Any = importlib.import_module("torch_tensorrt.dynamo.partitioning")
    lowered = lowering.pre_export_lowering(program, settings).run_decompositions(
        lowering.get_decompositions(settings.enable_experimental_decompositions)
    )
    module = lowering.post_lowering(lowered.module(), settings)
    able, every = partitioning.get_graph_converter_support(module, set())
    return int(able), int(every)

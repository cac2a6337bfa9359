"""Engines are built once by one process, kept, mended, and not tried again where they fail."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines import provision
from engines.artifacts import MANIFEST, Manifest
from engines.base import BACKENDS, ProgramNet, gpu_problem
from engines.build import BuildSpec, requested
from engines.cuda_graphs import capture_sizes
from engines.example_inputs import ExampleModel
from engines.export import Graph, graphs_of
from engines.provision import MAX_ATTEMPTS, EngineBuild, build_lock, needed
from engines.select import stored_engine
from engines.student_engines import StudentEngines
from fada.cli import main
from model.diffusion.cached_context import CachedContext
from model.models import SHIPPED_MOTION
from tests.engines.networks import (
    FAKE_TENSORRT,
    SmallNet,
    predict,
    small_inputs,
    small_model,
    small_student,
    use_fake_tensorrt,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT as far as a CPU can show it: it compiles nothing."""
    use_fake_tensorrt(monkeypatch)
    monkeypatch.setenv("FADA_ENGINES", str(tmp_path))


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def build(*_: object) -> None:
        raise error

    monkeypatch.setattr("engines.provision.build", build)


@pytest.fixture
def wanted(fake: None, tmp_path: Path) -> EngineBuild:
    return EngineBuild("small", small_student(), tmp_path)


def test_an_engine_is_built_once_and_taken(wanted: EngineBuild, tmp_path: Path) -> None:
    plain = CachedContext(SmallNet())
    assert needed("small", wanted.student, plain) is not None
    wanted.run()
    assert wanted.failure is None
    built = (wanted.place / MANIFEST).stat().st_mtime_ns
    wanted.run()
    assert (wanted.place / MANIFEST).stat().st_mtime_ns == built
    engine = stored_engine(wanted.student, wanted.place)
    assert engine is not None and isinstance(engine.net, ProgramNet)
    assert needed("small", wanted.student, engine) is None
    # It is there, so it was refused when the worker started.
    assert needed("small", wanted.student, plain) is None
    plain.replace(engine.net)
    rows = small_inputs(6)
    truth = predict(small_model().net, rows)
    assert float((predict(plain, rows) - truth).abs().max()) < 0.02


def test_a_damaged_engine_is_built_anew(wanted: EngineBuild) -> None:
    wanted.run()
    plan = wanted.place / "denoise.plan"
    plan.write_bytes(plan.read_bytes()[:-9])
    assert not wanted.stored()
    wanted.run()
    assert wanted.stored()
    (wanted.place / MANIFEST).write_text("{")
    assert not wanted.stored()


@pytest.mark.parametrize(
    ("error", "final", "reason"),
    [
        (RuntimeError("no converter for sin"), True, "RuntimeError: no converter for sin"),
        (torch.OutOfMemoryError("2 GiB"), False, "out of memory: 2 GiB"),
        (MemoryError("host"), False, "out of memory: host"),
        (SystemExit(9), False, "the build was killed, perhaps for lack of memory"),
    ],
)
def test_what_fails_is_noted_with_its_reason(
    wanted: EngineBuild,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    final: bool,
    reason: str,
) -> None:
    failing(monkeypatch, error)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        with pytest.raises(type(error)):
            wanted.run()
        assert wanted.failure == provision.Failure(attempt, reason, final)
        assert wanted.failure.forbids == (final or attempt == MAX_ATTEMPTS)
    before = wanted.failure
    failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):  # it is tried by hand, whatever failed before
        wanted.run()
    assert wanted.failure == before


def test_an_inaccurate_engine_is_a_final_failure(
    wanted: EngineBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(provision.requested.__globals__["TOLERANCES"], "fp16", 1e-9)
    with pytest.raises(ValueError, match="the engine's error is"):
        wanted.run()
    assert wanted.failure is not None and wanted.failure.final
    assert not wanted.stored()


def test_other_inputs_are_tried_again(
    wanted: EngineBuild, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted.fail("it crashed", final=True)
    assert EngineBuild("small", small_student(), tmp_path).failure == wanted.failure is not None
    other = small_model().net
    torch.nn.init.zeros_(other.get_parameter("out.bias"))
    assert EngineBuild("small", replace(small_student(), net=other), tmp_path).failure is None
    driver = tmp_path / "driver"
    driver.write_text("NVRM version: 600.1\n")
    monkeypatch.setattr("engines.base._DRIVER", driver)
    assert EngineBuild("small", small_student(), tmp_path).failure is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_driver_that_torch_cannot_use_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nX")

    assert gpu_problem() == "there is no GPU"
    monkeypatch.setattr("engines.base._DRIVER", tmp_path)
    monkeypatch.setattr("torch.cuda.init", init)
    assert gpu_problem() == (
        "torch cannot use the GPU: "
        "The NVIDIA driver on your system is too old (found version 11040)."
    )


def test_without_its_builder_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "tensorrt", replace(FAKE_TENSORRT, builder="torch_missing"))
    assert provision.unbuildable() == (
        "torch_missing is not installed; `fada doctor` names the command that installs it"
    )


def hold(root: Path, held: Callable[[], None], release: Callable[[], bool]) -> None:
    with build_lock(root):
        held()
        release()


def test_one_process_builds_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    held, never = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=hold, args=(tmp_path, held.set, never.wait))
    holder.start()
    assert held.wait(20)
    with build_lock(tmp_path, wait=False) as ours:
        assert ours is None
    holder.kill()
    with build_lock(tmp_path) as ours:
        assert ours is not None
    holder.join()


def test_batches_are_padded_to_captured_sizes() -> None:
    assert capture_sizes(64) == (1, 2, 4, *range(8, 65, 8))
    assert capture_sizes(3) == (1, 2, 3)
    net = SmallNet().eval().requires_grad_(False)
    seen = []

    def counted(graph: Graph) -> Callable[..., tuple[torch.Tensor, ...]]:
        def run(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            seen.append(len(inputs[0]))
            return graph(inputs)

        return run

    graphs = {graph.name: counted(graph) for graph in graphs_of(net, small_inputs(2))}
    made = ProgramNet(("c",), graphs, most=8, device=torch.device("cpu"), sizes=capture_sizes(8))
    rows = small_inputs(13)  # a full portion, and five padded to eight
    seen.clear()
    assert float((predict(CachedContext(made), rows) - predict(net, rows)).abs().max()) < 1e-6
    assert seen == [8, 8, 8, 8]


def test_the_command_builds_what_a_worker_needs(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []

    def build(model: ExampleModel, spec: BuildSpec, root: Path) -> tuple[Path, Manifest]:
        wanted.append(f"{model.name} {spec.backend} {spec.precision} {spec.batch} {root}")
        return root, replace(requested(model, spec), parity={"1": 0.0})

    monkeypatch.setenv("FADA_MODELS", "motion-fast")
    monkeypatch.setattr("engines.provision.build", build)
    with pytest.raises(SystemExit) as ended:
        main(["engines", "build"])
    assert ended.value.code == 0
    assert wanted == [f"motion-fast tensorrt fp16 range(1, 65) {tmp_path}"]


def test_a_served_model_is_known_by_its_name(fake: None) -> None:
    from model import models

    engines = StudentEngines(lambda one: CachedContext(one.net))  # type: ignore[arg-type]
    loaded = models.load(SHIPPED_MOTION, motion_engine=engines.motion, space=provision.MotionOnly())
    assert list(loaded) == ["motion-fast", "motion-balanced"]
    assert [one.net.config.guided for one, _ in engines.take()] == [True, False]  # type: ignore[union-attr]


@pytest.mark.parametrize("words", [["--model", "motion-fast"], ["--backend", "tensorrt"]])
def test_half_of_a_request_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="--model and --backend go together"):
        main(["engines", "build", *words])

"""The best engine that fits runs; engines that do not fit, fail or are inaccurate are skipped."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from engines import artifacts
from engines.artifacts import Manifest
from engines.base import backend_named
from engines.example_inputs import motion_inputs
from engines.motion_error import MAX_MOTION_ERROR, motion_error
from engines.openvino import Context, OpenVINONet, precisions
from engines.openvino_convert import compiled
from engines.select import best, fitting, motion_engine
from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Conditions, Forward
from model.models import DEFAULT, WEIGHTS, Choice, MotionEngine, load, motion_pipeline
from model.motion.checkpoint import MotionWeights, load_weights
from model.motion.network import MotionNet, NetConfig
from model.motion.rollout import MotionOnly, roll_out
from model.portrait.blendshapes import REFERENCE_DIM
from model.types import Floats
from tests.engines.networks import predict


@pytest.fixture
def net() -> MotionNet:
    torch.manual_seed(0)
    return MotionNet(NetConfig(width=32, heads=2, blocks=1, guided=True)).eval()


def inputs(rows: int) -> dict[str, Tensor]:
    return motion_inputs(rows, guided=True)


def manifest_of(net: nn.Module, **changes: object) -> Manifest:
    """As if `fada engines build` had made it here, for this network."""
    made = Manifest(
        model="test",
        backend="compiled",
        precision="fp32",
        batch=(1, 8),
        weights=artifacts.weights_hash(net),
        code=artifacts.code_hash(net),
        machine=backend_named("compiled").machine(),
        shapes={name: tuple(x.shape[1:]) for name, x in inputs(1).items()},
        files={},
        tolerance=1e-3,
        parity={"1": 0.0},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def publish(root: Path, manifest: Manifest) -> Path:
    with artifacts.staging(root) as folder:
        for name in ("context.pt2", "denoise.pt2"):
            (folder / name).write_bytes(b"no package")
        files = {path.name: artifacts.file_hash(path) for path in folder.iterdir()}
        return artifacts.publish(folder, root, replace(manifest, files=files))


def test_without_artifacts_a_cpu_runs_openvino(
    net: MotionNet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert isinstance(best(net, inputs, tmp_path).net, OpenVINONet)
    assert f"using engine openvino {precisions()[0]}: " in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_large_network_is_not_compiled_at_the_start(
    net: MotionNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = sum(p.numel() for p in net.parameters())
    monkeypatch.setattr("engines.select._MAX_OPENVINO_PARAMETERS", parameters - 1)
    assert best(net, inputs, tmp_path).net is net


def test_what_does_not_fit_is_logged_and_never_loaded(
    net: MotionNet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, manifest_of(net, weights="0" * 64))
    publish(tmp_path, manifest_of(net, machine={"device": "cpu", "torch": "1.0"}))
    publish(tmp_path, manifest_of(net, code="0" * 64))
    with caplog.at_level(logging.INFO):
        assert fitting(net, inputs, tmp_path) == []
    assert caplog.text.count("not using engine test-compiled-fp32-") == 3
    for reason in ("other weights", "another machine", "code has changed"):
        assert reason in caplog.text


def test_another_network_fits_nothing(net: MotionNet, tmp_path: Path) -> None:
    publish(tmp_path, manifest_of(net))
    assert len(fitting(net, inputs, tmp_path)) == 1
    with torch.no_grad():
        net.out.bias[0] += 1e-3
    assert fitting(net, inputs, tmp_path) == []


def test_lower_precision_comes_first(net: MotionNet, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        publish(tmp_path, manifest_of(net, precision=precision))
    order = [manifest.precision for _, manifest in fitting(net, inputs, tmp_path)]
    assert order == ["bf16", "fp16", "fp32"]


class BatchDependent(nn.Module):
    """Its output depends on the size of the batch: the check of OpenVINO refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        return (cond["size"],)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return self.gain * x_t * len(x_t) + 0.0 * (t + context[0])[:, None]

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self.denoise(x_t, t, self.context(cond))


def batch_dependent_inputs(rows: int) -> dict[str, Tensor]:
    return {"x_t": torch.ones(rows, 3), "t": torch.ones(rows), "size": torch.ones(rows)}


def test_every_failure_is_a_warning_and_plain_torch_remains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = BatchDependent()
    shapes = {"x_t": (3,), "t": (), "size": ()}
    damaged = publish(tmp_path, manifest_of(net, shapes=shapes))
    (damaged / "denoise.pt2").write_bytes(b"other bytes")
    publish(tmp_path, manifest_of(net, shapes=shapes, model="unloadable"))
    monkeypatch.setattr("engines.select.precisions", lambda: ("fp32",))
    with caplog.at_level(logging.INFO):
        engine = best(net, batch_dependent_inputs, tmp_path)
    assert engine.net is net
    own = [record for record in caplog.records if record.name == "engines.select"]
    warnings = [record.message for record in own if record.levelno == logging.WARNING]
    assert len(warnings) == 4
    assert "engine openvino fp32 failed: ValueError: OpenVINO is off by" in warnings[0]
    assert any("its file denoise.pt2 is damaged" in text for text in warnings)
    assert any("unloadable-compiled-fp32" in text for text in warnings)
    assert warnings[-1] == "using plain torch: no engine works here"
    rows = batch_dependent_inputs(2)
    torch.testing.assert_close(predict(engine, rows), 2.0 * rows["x_t"])


def test_the_shipped_student_runs_on_an_engine() -> None:
    fast = Choice((DEFAULT,))
    made, plain = load(fast, motion_engine=motion_engine)[DEFAULT], load(fast)[DEFAULT]
    assert (made.name, made.metadata) == (plain.name, plain.metadata)
    with pytest.raises(ValueError, match="model = .nobody."):
        load(Choice(("nobody",)), motion_engine=motion_engine)


def shipped(name: str) -> MotionWeights:
    return load_weights(WEIGHTS / f"{name}.safetensors")


def speech_motion(
    weights: MotionWeights, engine: MotionEngine | None, examples: Path
) -> list[Floats]:
    """The motion of two sessions for the first second of the example speech."""
    samples, rate = soundfile.read(examples / "speech.wav", dtype="float32")
    pipeline = motion_pipeline("tested", weights, MotionOnly(), engine=engine)
    rest = np.zeros(REFERENCE_DIM, np.float32)
    return roll_out(
        pipeline,
        [samples[:rate]] * 2,
        [rest] * 2,
        seeds=[1, 2],
        guidance=pipeline.metadata.guidance,
        steps=pipeline.metadata.steps,
        progress=False,
    )


Spoken = tuple[MotionWeights, list[Floats]]


@pytest.fixture(scope="module", params=["motion-fast", "motion-balanced"])
def spoken(request: pytest.FixtureRequest, examples: Path) -> Spoken:
    """A shipped student, and the motion that its network makes of the speech."""
    weights = shipped(request.param)
    return weights, speech_motion(weights, None, examples)


def test_a_shipped_student_in_single_precision_is_its_network(
    spoken: Spoken, examples: Path
) -> None:
    def single(weights: MotionWeights) -> Forward:
        example = motion_inputs(2, weights.net.config.guided)
        return CachedContext(compiled(weights.net, example, precision="fp32"))

    weights, truth = spoken
    made = speech_motion(weights, single, examples)
    for mine, theirs in zip(made, truth, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_the_selected_engine_moves_a_face_as_the_network_does(
    spoken: Spoken, examples: Path
) -> None:
    """In whatever precision this processor is fast in, and on speech that did not decide it."""
    weights, truth = spoken
    made = speech_motion(weights, motion_engine, examples)
    error = np.sqrt(np.mean((np.stack(made) - np.stack(truth)) ** 2)) / np.std(truth)
    assert error < 2 * MAX_MOTION_ERROR


def test_a_precision_that_changes_the_motion_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As bfloat16 does to motion-balanced on some processors; here by a twentieth everywhere."""

    class Coarse(OpenVINONet):
        def denoise(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
            made = super().denoise(x_t, t, context)
            return made if self.precision == "fp32" else made * 1.05

    # One evaluation on random inputs would not show it.
    monkeypatch.setattr("engines.openvino_convert._check", lambda *_, **__: None)
    monkeypatch.setattr("engines.select.precisions", lambda: ("bf16", "fp32"))
    monkeypatch.setattr("engines.openvino_convert.OpenVINONet", Coarse)
    weights = shipped("motion-fast")
    with caplog.at_level(logging.INFO):
        forward = motion_engine(weights)
    assert "not using engine openvino bf16: motion is off by" in caplog.text
    assert "using engine openvino fp32: " in caplog.text
    assert motion_error(weights, forward) < 1e-3

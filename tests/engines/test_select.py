"""The best engine that fits runs; what does not fit or fails is told, and passed over."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines import artifacts, identity
from engines.artifacts import Manifest
from engines.eager import EagerHalves
from engines.example_inputs import motion_inputs
from engines.openvino import OpenVINOEngine, precisions
from engines.select import best, fitting
from model.diffusion.denoiser import Conditions
from model.motion.network import MotionNet, NetConfig


@pytest.fixture
def net() -> MotionNet:
    torch.manual_seed(0)
    return MotionNet(NetConfig(width=32, heads=2, blocks=1, guided=True)).eval()


def inputs(rows: int) -> dict[str, Tensor]:
    return motion_inputs(rows, guided=True)


def manifest_of(net: nn.Module, **changes: object) -> Manifest:
    """As if `fada engines build` had made it here, for this network."""
    device = identity.device_for("compiled")
    made = Manifest(
        model="test",
        backend="compiled",
        precision="fp32",
        batch=(1, 8),
        weights=identity.weights_hash(net),
        code=identity.code_hash(net),
        machine=identity.machine("compiled", device) or {},
        shapes={name: tuple(x.shape[1:]) for name, x in inputs(1).items()},
        files={},
        tolerance=1e-3,
        parity={"1": 0.0},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def publish(root: Path, manifest: Manifest) -> Path:
    with artifacts.workshop(root) as folder:
        for name in ("context.pt2", "denoise.pt2"):
            (folder / name).write_bytes(b"no package")
        files = {path.name: artifacts.file_hash(path) for path in folder.iterdir()}
        return artifacts.publish(folder, root, replace(manifest, files=files))


def test_without_artifacts_a_cpu_runs_openvino(
    net: MotionNet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert isinstance(best(net, inputs, tmp_path), OpenVINOEngine)
    assert f"engine: openvino {precisions()[0]}, since" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_large_network_is_not_compiled_at_the_start(
    net: MotionNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.select._LARGEST", sum(p.numel() for p in net.parameters()) - 1)
    assert isinstance(best(net, inputs, tmp_path), EagerHalves)


def test_what_does_not_fit_is_told_and_never_loaded(
    net: MotionNet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, manifest_of(net, weights="0" * 64))
    publish(tmp_path, manifest_of(net, machine={"device": "cpu", "torch": "1.0"}))
    publish(tmp_path, manifest_of(net, code="0" * 64))
    with caplog.at_level(logging.INFO):
        assert fitting(net, inputs, tmp_path) == []
    assert caplog.text.count("engine not used, test-compiled-fp32-") == 3
    for reason in ("other weights", "another machine", "code has changed"):
        assert reason in caplog.text


def test_another_network_fits_nothing(net: MotionNet, tmp_path: Path) -> None:
    publish(tmp_path, manifest_of(net))
    assert len(fitting(net, inputs, tmp_path)) == 1
    with torch.no_grad():
        net.out.bias[0] += 1e-3
    assert fitting(net, inputs, tmp_path) == []


def test_the_same_weights_in_half_precision_are_the_same(net: MotionNet) -> None:
    net.half()
    before = identity.weights_hash(net)
    assert identity.weights_hash(net.float()) == before


def test_lower_precision_comes_first(net: MotionNet, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        publish(tmp_path, manifest_of(net, precision=precision))
    spec = [manifest.precision for _, manifest in fitting(net, inputs, tmp_path)]
    assert spec == ["bf16", "fp16", "fp32"]


class Stubborn(nn.Module):
    """What it gives depends on the batch: OpenVINO's check refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        return (cond["size"],)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return self.gain * x_t * len(x_t) + 0.0 * (t + context[0])[:, None]

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self.denoise(x_t, t, self.context(cond))


def stubborn_inputs(rows: int) -> dict[str, Tensor]:
    return {"x_t": torch.ones(rows, 3), "t": torch.ones(rows), "size": torch.ones(rows)}


def test_every_failure_is_a_warning_and_plain_torch_remains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Stubborn()
    shapes = {"x_t": (3,), "t": (), "size": ()}
    damaged = publish(tmp_path, manifest_of(net, shapes=shapes))
    (damaged / "denoise.pt2").write_bytes(b"other bytes")
    publish(tmp_path, manifest_of(net, shapes=shapes, model="unloadable"))
    monkeypatch.setattr("engines.select.precisions", lambda: ("fp32",))
    with caplog.at_level(logging.INFO):
        engine = best(net, stubborn_inputs, tmp_path)
    assert isinstance(engine, EagerHalves)
    own = [record for record in caplog.records if record.name == "engines.select"]
    warnings = [record.message for record in own if record.levelno == logging.WARNING]
    assert len(warnings) == 4
    assert "openvino fp32: ValueError: the engine's network is off by" in warnings[0]
    assert any("its file denoise.pt2 is damaged" in text for text in warnings)
    assert any("unloadable-compiled-fp32" in text for text in warnings)
    assert warnings[-1] == "engine: plain torch, since nothing faster works here"
    rows = stubborn_inputs(2)
    torch.testing.assert_close(engine(**rows), 2.0 * rows["x_t"])

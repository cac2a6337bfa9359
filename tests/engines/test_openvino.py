"""The network on OpenVINO is the network, for any batch, and is refused when it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines import openvino_convert
from engines.example_inputs import motion_inputs, video_inputs
from engines.openvino import Context
from engines.openvino_convert import cached, compiled
from model.audio.log_mel import LOG_MEL
from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Conditions
from model.motion.network import MotionNet, NetConfig
from model.video.tiny import TinyNet
from model.video.weights import load_net
from tests.engines.networks import predict
from tests.model.video.small_students import write_tiny

GAP = 1e-4  # of the prediction's spread, in single precision: what is tested on every machine
TINY_GAP = 1e-3


def small(guided: bool) -> MotionNet:
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=32, heads=2, blocks=2, guided=guided))
    return net.eval().requires_grad_(False)


def on_openvino(net: MotionNet) -> CachedContext[Context]:
    return CachedContext(compiled(net, motion_inputs(2, net.config.guided)))


def agree(made: Tensor, truth: Tensor) -> bool:
    return float((made - truth).abs().max() / truth.std()) < GAP


@pytest.mark.parametrize("guided", [True, False])
def test_it_equals_the_network_for_any_batch(guided: bool) -> None:
    net = small(guided)
    made = on_openvino(net)
    for batch in (1, 3, 8, 2):
        inputs = motion_inputs(batch, guided)
        assert agree(predict(made, inputs), predict(net, inputs))


def test_batched_equals_alone() -> None:
    made = on_openvino(small(True))
    inputs = motion_inputs(5, True)
    together = predict(made, inputs)
    for i in range(5):
        alone = predict(made, {name: rows[i : i + 1] for name, rows in inputs.items()})
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)


def test_a_changed_condition_changes_the_context() -> None:
    net = small(True)
    made = on_openvino(net)
    inputs = motion_inputs(2, True)
    for name in ("x_t", "t", "audio", "guidance", "prefix", "reference", "has_audio"):
        inputs[name] = 0.5 * inputs[name]
        for _ in range(2):
            again = {key: rows.clone() for key, rows in inputs.items()}
            assert agree(predict(made, again), predict(net, inputs)), name


def test_one_context_serves_all_steps_of_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    net = compiled(small(False), motion_inputs(2, False))
    context, rows = net.context, []

    def counted(cond: Conditions) -> Context:
        rows.append(len(cond["audio"]))
        return context(cond)

    monkeypatch.setattr(net, "context", counted)
    made, inputs = CachedContext(net), motion_inputs(3, False)
    for t in (1.0, 0.6, 0.2):
        predict(made, inputs | {"x_t": torch.randn(3, 8, 58), "t": torch.full((3,), t)})
    assert rows == [3]


def test_results_are_the_callers_own() -> None:
    made = on_openvino(small(False))
    first = predict(made, motion_inputs(2, False))
    kept = first.clone()
    predict(made, motion_inputs(2, False) | {"x_t": torch.ones(2, 8, 58)})
    torch.testing.assert_close(first, kept)


def test_a_network_that_depends_on_its_example_is_refused() -> None:
    class BatchDependent(nn.Module):
        def context(self, cond: Conditions) -> tuple[Tensor, ...]:
            return (cond["size"],)

        def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
            return x_t * len(x_t) + 0.0 * (t + context[0])[:, None]

    example = {"x_t": torch.ones(2, 3), "t": torch.ones(2), "size": torch.ones(2)}
    with pytest.raises(ValueError, match="OpenVINO is off by"):
        compiled(BatchDependent(), example)


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and any conversion from then on is an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    return lambda: monkeypatch.setattr(openvino_convert, "converted", refuse)


class Line(nn.Module):
    """A `SplitNet` that is converted in no time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain = nn.Parameter(torch.randn(64))

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        return (cond["shift"] @ torch.outer(self.gain, self.gain),)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return self.gain * x_t + t[:, None] * context[0]

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self.denoise(x_t, t, self.context(cond))


def line_inputs(rows: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x_t": torch.randn(rows, 64), "t": torch.ones(rows), "shift": torch.randn(rows, 64)}


def test_a_second_start_reads_what_the_first_converted(
    tmp_path: Path, no_conversion: Callable[[], None]
) -> None:
    net, rows = Line(), line_inputs(2)
    first = cached(net, rows, tmp_path)
    no_conversion()
    for _ in range(2):  # the second reads what OpenVINO has compiled as well
        again = cached(net, rows, tmp_path)
        assert torch.equal(predict(CachedContext(again), rows), predict(CachedContext(first), rows))


def test_other_weights_are_converted_anew(
    tmp_path: Path, no_conversion: Callable[[], None]
) -> None:
    net, rows = Line(), line_inputs(2)
    cached(net, rows, tmp_path)
    with torch.no_grad():
        net.gain += 1e-3
    cached(net, rows, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_cache_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, rows = Line(), line_inputs(2)
    cached(net, rows, tmp_path)
    (folder,) = tmp_path.iterdir()
    weights = folder / "denoise.bin"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"\x40" * len(whole)):
        weights.write_bytes(damaged)
        for blob in folder.glob("*.blob"):  # what OpenVINO compiled needs none of these files
            blob.unlink()
        caplog.clear()
        made = cached(net, rows, tmp_path)
        assert "converting again" in caplog.text
        assert agree(predict(CachedContext(made), rows), predict(net, rows))
    caplog.clear()
    cached(net, rows, tmp_path)
    assert "converting again" not in caplog.text


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("no folder")
    net, rows = Line(), line_inputs(2)
    assert agree(predict(CachedContext(cached(net, rows, root)), rows), predict(net, rows))


@pytest.mark.parametrize("guided", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_video_tiny_runs_in_any_batch_on_two_threads(tmp_path: Path, guided: bool) -> None:
    net, _ = load_net(write_tiny(tmp_path / "tiny", guided, shallow=True), torch.float32)
    assert isinstance(net, TinyNet)
    net.unet.conv_out.weight.mul_(0.2)  # to the spread of what a trained one adds
    inputs = video_inputs(net, LOG_MEL, net.config.latent_shape)
    made = CachedContext(compiled(net, inputs(2), threads=2))
    for batch in (1, 3, 2):
        given = inputs(batch)
        truth = predict(net, given)
        assert float((predict(made, given) - truth).abs().max() / truth.std()) < TINY_GAP
    given = inputs(3)
    together = predict(made, given)
    for row in range(3):
        alone = predict(made, {name: rows[row : row + 1] for name, rows in given.items()})
        assert torch.equal(alone[0], together[row])
    given["prefix"] = torch.zeros_like(given["prefix"])  # without a past, the portrait is used
    truth = predict(net, given)
    assert float((predict(made, given) - truth).abs().max() / truth.std()) < TINY_GAP

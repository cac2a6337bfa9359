"""Video students run on the machine's engine as their networks do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.eager import EagerEngine
from engines.openvino import OpenVINOEngine
from engines.video import video_inputs
from model.audio.frontend import AudioWindowSpec
from model.audio.log_mel import LOG_MEL
from model.video.tiny import TinyNet
from model.video.unet3d import DenoisingUNet
from model.video.weights import load_net
from tests.model.audio.test_whisper_rows import ROWS
from tests.model.video.small_students import SIDE, write_tiny, write_video

GAP = 1e-3  # of the prediction's spread, in single precision


@pytest.mark.parametrize("guided", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_openvino_runs_video_tiny_for_any_batch_on_two_threads(
    tmp_path: Path, guided: bool
) -> None:
    net, _ = load_net(write_tiny(tmp_path / "tiny", guided), torch.float32)
    assert isinstance(net, TinyNet)
    net.unet.conv_out.weight.mul_(0.2)  # to the spread of what a trained one adds
    inputs = video_inputs(net, LOG_MEL, net.config.latent_shape)
    made = OpenVINOEngine(net, inputs(2), threads=2)
    for batch in (1, 3, 2):
        given = inputs(batch)
        truth = EagerEngine(net)(**given)
        assert float((made(**given) - truth).abs().max() / truth.std()) < GAP
    given = inputs(3)
    together = made(**given)
    for row in range(3):  # gets what it gets alone
        alone = made(**{name: rows[row : row + 1] for name, rows in given.items()})
        assert torch.equal(alone[0], together[row])
    given["prefix"] = torch.zeros_like(given["prefix"])  # where no past is known, the portrait is
    truth = EagerEngine(net)(**given)
    assert float((made(**given) - truth).abs().max() / truth.std()) < GAP


def test_inputs_of_the_real_size_are_what_its_network_takes(tmp_path: Path) -> None:
    net, _ = load_net(write_video(tmp_path) / "student.safetensors", torch.float32)
    assert isinstance(net, DenoisingUNet)
    window_spec = AudioWindowSpec(ROWS, net.config.prefix_frames, 4, 0)
    shape = (4, SIDE // 4, SIDE // 4)
    inputs = video_inputs(net, window_spec, shape)(2)
    wide = dict(inputs, audio=torch.zeros(2, window_spec.frames, ROWS.row_shape[0], 10))
    made = EagerEngine(net)(**wide)
    assert made.shape == (2, 4, *shape)
    assert inputs["audio"].shape[:3] == wide["audio"].shape[:3]
    assert np.isfinite(made.numpy()).all()


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="a Linear is no video student's"):
        video_inputs(torch.nn.Linear(1, 1), LOG_MEL, (1,))

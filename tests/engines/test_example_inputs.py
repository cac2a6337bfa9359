"""Networks have names, and their example inputs are of the shapes that are served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.example_inputs import example_model, names, video_inputs
from engines.export import graphs_of
from model.audio.frontend import AudioWindowSpec
from model.audio.log_mel import LOG_MEL
from model.video.unet3d import DenoisingUNet
from model.video.weights import load_net
from tests.engines.networks import predict
from tests.model.audio.test_whisper_rows import ROWS
from tests.model.video.small_students import SIDE, write_video


def test_networks_by_name() -> None:
    assert "motion-fast" in names()
    for name in ("video-student", "video-teacher", "video-reference", "video-decoder"):
        tiny = example_model(name, tiny=True)
        assert tiny.name == f"{name}-tiny"
        assert graphs_of(tiny.net, tiny.inputs(2))
        assert all(parameter.any() for parameter in tiny.net.parameters())
    with pytest.raises(ValueError, match="model = 'nobody', expected one of motion-"):
        example_model("nobody")


def test_inputs_of_the_real_size_are_what_its_network_takes(tmp_path: Path) -> None:
    net, _ = load_net(write_video(tmp_path) / "student.safetensors", torch.float32)
    assert isinstance(net, DenoisingUNet)
    window_spec = AudioWindowSpec(ROWS, net.config.prefix_frames, 4, 0)
    shape = (4, SIDE // 4, SIDE // 4)
    inputs = video_inputs(net, window_spec, shape)(2)
    wide = dict(inputs, audio=torch.zeros(2, window_spec.frames, ROWS.row_shape[0], 10))
    made = predict(net, wide)
    assert made.shape == (2, 4, *shape)
    assert inputs["audio"].shape[:3] == wide["audio"].shape[:3]
    assert np.isfinite(made.numpy()).all()


def test_the_network_of_no_video_student_is_refused() -> None:
    with pytest.raises(ValueError, match="net is a Linear, expected the network of a video"):
        video_inputs(torch.nn.Linear(1, 1), LOG_MEL, (1,))

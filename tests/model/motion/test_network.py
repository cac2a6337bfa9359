"""The network's contract: shapes, conditions that can be left out, files that bring it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.audio.log_mel import HOP, PREFIX, ROW_DIM, WINDOW_FRAMES
from model.models import WEIGHTS
from model.motion.checkpoint import MotionWeights, load_weights, save_weights
from model.motion.network import MotionNet, NetConfig
from model.portrait.blendshapes import MOTION_DIM, REFERENCE_DIM
from model.weights_file import read_header
from training.guidance_distillation import DistillConfig, student_of


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    cond = {
        "prefix": torch.randn(batch, PREFIX, MOTION_DIM),
        "audio": torch.randn(batch, WINDOW_FRAMES, ROW_DIM),
        "reference": torch.randn(batch, REFERENCE_DIM),
        "has_audio": torch.ones(batch),
        "has_reference": torch.ones(batch),
        "guidance": torch.ones(batch, 2),
    }
    return torch.randn(batch, HOP, MOTION_DIM), torch.rand(batch), cond


WHISPER = 3  # blocks, as in what ships


def net(guided: bool = False, whisper_blocks: int = 0, **sizes: int) -> MotionNet:
    torch.manual_seed(1)
    config = NetConfig(guided=guided, whisper_blocks=whisper_blocks, **sizes)
    made = MotionNet(config).eval().requires_grad_(False)
    for p in made.parameters():  # the zeros it starts with would hide what depends on what
        p.add_(0.02 * torch.randn_like(p))
    return made


def test_size_is_what_a_core_can_run_live() -> None:
    assert 3e6 < sum(p.numel() for p in net(guided=True).parameters()) < 5.5e6
    assert sum(p.numel() for p in net(guided=True, whisper_blocks=WHISPER).parameters()) < 1e7


@pytest.mark.parametrize("blocks", [0, WHISPER])
def test_batched_equals_alone(blocks: int) -> None:
    x, t, cond = inputs(5)
    student = net(guided=True, whisper_blocks=blocks)
    batched = student(x, t, cond)
    assert batched.shape == (5, HOP, MOTION_DIM)
    for i in range(5):
        part = {k: v[i : i + 1] for k, v in cond.items()}
        alone = student(x[i : i + 1], t[i : i + 1], part)
        torch.testing.assert_close(alone, batched[i : i + 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flag, content", [("has_audio", "audio"), ("has_reference", "reference")])
def test_a_condition_that_is_off_changes_nothing_and_one_that_is_on_does(
    flag: str, content: str
) -> None:
    x, t, cond = inputs(2)
    other = cond | {content: torch.randn_like(cond[content])}
    teacher, off = net(), {flag: torch.zeros(2)}
    torch.testing.assert_close(teacher(x, t, cond | off), teacher(x, t, other | off))
    assert (teacher(x, t, cond) - teacher(x, t, other)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["prefix", "guidance"])
def test_prefix_and_scales_matter_to_a_student(name: str) -> None:
    x, t, cond = inputs(2)
    student = net(guided=True)
    other = cond | {name: cond[name] + 0.7}
    assert (student(x, t, cond) - student(x, t, other)).abs().max() > 1e-4


def test_sound_of_its_own_frame_matters_most_from_the_start() -> None:
    torch.manual_seed(0)
    fresh = MotionNet(NetConfig()).eval().requires_grad_(False)
    torch.nn.init.normal_(fresh.audio_to_motion.weight)
    x, t, cond = inputs(1)
    changed = cond["audio"].clone()
    changed[:, PREFIX + 3] += 3.0
    moved = (fresh(x, t, cond | {"audio": changed}) - fresh(x, t, cond)).abs().mean((0, 2))
    assert int(moved.argmax()) in (2, 3, 4)


def test_a_student_begins_near_its_teacher() -> None:
    x, t, cond = inputs(3)
    teacher = net()
    student = student_of(teacher, DistillConfig()).eval()
    difference = (student(x, t, cond) - teacher(x, t, cond)).std()
    assert difference < 0.2 * teacher(x, t, cond).std()
    with pytest.raises(ValueError, match="takes guidance scales"):
        student_of(net(guided=True), DistillConfig())


def test_a_student_goes_on_with_another_teachers_encoder() -> None:
    x, t, cond = inputs(3)
    begun, teacher = net(guided=True), net(whisper_blocks=WHISPER)
    student = student_of(teacher, DistillConfig(), begun)
    torch.testing.assert_close(student.audio_tokens(cond), teacher.audio_tokens(cond))
    silent = cond | {"has_audio": torch.zeros(3)}  # then the encoder has no part in it
    torch.testing.assert_close(student(x, t, silent), begun(x, t, silent))
    with pytest.raises(ValueError, match="expected a student"):
        student_of(teacher, DistillConfig(guided=False), begun)


@pytest.mark.parametrize("blocks", [0, 1])
def test_it_exports_with_a_dynamic_batch(blocks: int) -> None:
    """One block of each kind: further ones are the same again, and take seconds to export."""
    x, t, cond = inputs(2)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = ({0: batch}, {0: batch}, {k: {0: batch} for k in cond})
    student = net(guided=True, whisper_blocks=blocks, blocks=1, audio_layers=1)
    program = torch.export.export(student, (x, t, cond), dynamic_shapes=shapes)
    more = inputs(7, seed=3)
    torch.testing.assert_close(program.module()(*more), student(*more), atol=1e-4, rtol=1e-4)


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    student = net(guided=True)
    mean, std = torch.randn(MOTION_DIM), torch.rand(MOTION_DIM)
    metadata: dict[str, object] = {"steps": 6, "guidance": [1.5, 1.0]}
    save_weights(tmp_path / "w.safetensors", MotionWeights(student, mean, std, metadata))
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded.metadata == metadata and loaded.net.config.guided
    torch.testing.assert_close(loaded.mean, mean)
    x, t, cond = inputs(2)
    torch.testing.assert_close(loaded.net(x, t, cond), student(x, t, cond), atol=0.05, rtol=0.05)


def test_files_are_written_with_new_names_and_read_with_old_ones(tmp_path: Path) -> None:
    shipped = WEIGHTS / "motion-teacher.safetensors"
    weights, copy = load_weights(shipped), tmp_path / "copy.safetensors"
    save_weights(copy, weights)
    old, new = load_file(shipped), load_file(copy)
    assert {"net.aligned.weight", "net.heard.weight", "net.spoken.weight"} <= old.keys()
    renamed = {"net.audio_proj.weight", "net.audio_to_motion.weight", "net.viseme_head.weight"}
    assert renamed <= new.keys() and not any(key.startswith("net.audio.") for key in new)
    assert {"config", "metadata"} == read_header(copy).keys()
    again = load_weights(copy)
    assert again.metadata == weights.metadata and again.metadata["role"] == "teacher"
    for name, value in again.net.state_dict().items():
        assert torch.equal(value, weights.net.state_dict()[name])
    torch.testing.assert_close(new["net.audio_proj.weight"], old["net.aligned.weight"])


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights"):
        load_weights(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no motion network"):
        load_weights(tmp_path / "a.safetensors")

"""What the video networks promise, on tiny ones: shapes, who sees what, exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.diffusion.denoiser import VDenoiser
from model.diffusion.discrete_schedule import LinearBetaSchedule
from model.diffusion.guidance import CFGTokenDenoiser, MultiCFGDenoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.video.blocks import reference_places
from model.video.config import FaceLocatorConfig, MotionConfig, UNetConfig, VAEConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.unet3d import DenoisingUNet, student_of
from model.video.vae import VAE

Inputs = tuple[Tensor, Tensor, dict[str, Tensor]]
MakeNet = Callable[..., DenoisingUNet]
MakeInputs = Callable[..., Inputs]
MakeConfig = Callable[..., UNetConfig]
SCHEDULE = LinearBetaSchedule(1000, first=0.00085, last=0.012, zero_terminal_snr=True)
CLOSE = 1e-5


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def rows(inputs: Inputs, chosen: slice) -> Inputs:
    x_t, t, cond = inputs
    return x_t[chosen], t[chosen], {k: v[chosen] for k, v in cond.items()}


VARIANTS = {
    "plain": {},
    "three levels": {
        "channels": (8, 12, 16),
        "attention": (True, False, True),
        "heads": (2, 3, 4),
        "motion": MotionConfig(
            down=(True, False, True), up=(False, True, True), heads=2, groups=2, positions=9
        ),
    },
    "two blocks of three, narrower, no place in time": {
        "motion": MotionConfig(
            down=(False, True),
            mid=False,
            up=(True, False),
            heads=1,
            blocks=2,
            attentions=3,
            width_divisor=2,
            groups=4,
            positions=None,
        )
    },
    "no motion": {"motion": None},
    "other channels in than out": {"in_channels": 5, "out_channels": 2, "layers": 2},
    "prefix": {"prefix_frames": 2},
    "student": {"guided": True},
    "student with prefix": {"guided": True, "prefix_frames": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_sizes_run_and_a_batch_equals_alone(
    make_net: MakeNet, make_inputs: MakeInputs, variant: str
) -> None:
    net = make_net(**VARIANTS[variant])
    together = make_inputs(net.config, 3, size=(8, 12))
    made = net(*together)
    x_t = together[0]
    assert made.shape == (*x_t.shape[:2], net.config.out_channels, *x_t.shape[3:])
    assert bool(torch.isfinite(made).all())
    for i in range(3):
        assert gap(net(*rows(together, slice(i, i + 1))), made[i : i + 1]) < CLOSE


def test_odd_sides_come_back_as_they_were(make_net: MakeNet, make_inputs: MakeInputs) -> None:
    net = make_net(attention=(True, False))
    x_t, t, cond = make_inputs(net.config, 1, size=(7, 5))
    cond = {k: torch.randn(1, 6, 20) if k == "reference.mid" else v for k, v in cond.items()}
    assert net(x_t, t, cond).shape == x_t.shape


@pytest.mark.parametrize("name", ["audio", "face", "reference.down.0.0", "reference.mid"])
def test_every_condition_matters_and_its_flag_leaves_it_out(
    make_net: MakeNet, make_inputs: MakeInputs, name: str
) -> None:
    net = make_net()
    x_t, t, cond = make_inputs(net.config, 2)
    other = cond | {name: torch.randn_like(cond[name])}
    assert gap(net(x_t, t, cond), net(x_t, t, other)) > 1e-3
    flag = "has_audio" if name == "audio" else "has_reference"
    off = {flag: torch.zeros(2)}
    assert gap(net(x_t, t, cond | off), net(x_t, t, other | off)) == 0.0


def test_flags_are_each_rows_own(make_net: MakeNet, make_inputs: MakeInputs) -> None:
    net = make_net()
    x_t, t, cond = make_inputs(net.config, 2)
    mixed = cond | {"has_reference": torch.tensor([0.0, 1.0]), "has_audio": torch.tensor([1.0, 0])}
    made = net(x_t, t, mixed)
    for i in range(2):
        alone = net(*rows((x_t, t, mixed), slice(i, i + 1)))
        assert gap(alone, made[i : i + 1]) < CLOSE


def test_time_matters(make_net: MakeNet, make_inputs: MakeInputs) -> None:
    net = make_net()
    x_t, t, cond = make_inputs(net.config, 2)
    assert gap(net(x_t, t, cond), net(x_t, t * 0.9, cond)) > 1e-3


def far_frames_change(net: DenoisingUNet, inputs: Inputs) -> float:
    """How much frame 0 changes when frame 2 does, in latents and sound."""
    x_t, t, cond = inputs
    changed, heard = x_t.clone(), cond["audio"].clone()
    changed[:, 2] += 1.0
    heard[:, 2] += 1.0
    return gap(net(x_t, t, cond)[:, 0], net(changed, t, cond | {"audio": heard})[:, 0])


def test_frames_meet_in_motion_modules_only(make_net: MakeNet, make_inputs: MakeInputs) -> None:
    net = make_net()
    inputs = make_inputs(net.config, 1)
    assert far_frames_change(net, inputs) > 1e-3
    for name, parameter in net.named_parameters():
        if "temporal.proj_out" in name:
            parameter.zero_()
    assert far_frames_change(net, inputs) == 0.0


def test_a_new_network_does_not_move_yet(make_config: MakeConfig, make_inputs: MakeInputs) -> None:
    net = DenoisingUNet(make_config()).eval().requires_grad_(False)
    assert far_frames_change(net, make_inputs(net.config, 1)) == 0.0


def test_the_window_follows_its_prefix_through_motion_modules(
    make_net: MakeNet, make_inputs: MakeInputs
) -> None:
    net = make_net(prefix_frames=2)
    x_t, t, cond = make_inputs(net.config, 1)
    other = cond | {"prefix": cond["prefix"] + 1.0}
    assert gap(net(x_t, t, cond), net(x_t, t, other)) > 1e-3
    for name, parameter in net.named_parameters():
        if "temporal.proj_out" in name:
            parameter.zero_()
    assert gap(net(x_t, t, cond), net(x_t, t, other)) == 0.0


def test_a_window_after_its_prefix_is_the_end_of_one_long_clip(
    make_net: MakeNet, make_inputs: MakeInputs
) -> None:
    """With one look along time, what a prefix did not see of later frames cannot matter yet."""
    once = MotionConfig(
        down=(False, False), up=(False, False), heads=2, attentions=1, groups=2, positions=9
    )
    late = make_net(prefix_frames=2, motion=once)
    plain = DenoisingUNet(replace(late.config, prefix_frames=0)).eval().requires_grad_(False)
    plain.load_state_dict(late.state_dict())
    x_t, _, cond = make_inputs(late.config, 2)
    first_step = torch.full((2,), 0.001)  # what the prefix is told, too
    whole = plain(torch.cat([cond["prefix"], x_t], dim=1), first_step, cond)
    assert gap(late(x_t, first_step, cond), whole[:, 2:]) < CLOSE


def test_what_the_conditions_decide_is_made_once_for_all_steps(
    make_net: MakeNet, make_inputs: MakeInputs
) -> None:
    for variant in ("plain", "student with prefix"):
        net = make_net(**VARIANTS[variant])
        x_t, t, cond = make_inputs(net.config, 2)
        context = net.context(cond)
        assert {part.shape[0] for part in context} == {2}
        for share in (1.0, 0.5):
            made = net.denoise(share * x_t, share * t, context)
            assert gap(made, net(share * x_t, share * t, cond)) < CLOSE


def test_a_prefix_off_is_the_plain_network(make_net: MakeNet) -> None:
    plain, streaming = make_net(), make_net(prefix_frames=2)
    streaming.load_state_dict(plain.state_dict())  # the same parameters, none new


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_a_students_scales_matter(
    make_net: MakeNet, make_inputs: MakeInputs, which: int, embedded: bool
) -> None:
    net = make_net(guided=True, embedded_scales=embedded)
    x_t, t, cond = make_inputs(net.config, 2)
    other = cond["guidance"].clone()
    other[:, which] += 0.5
    assert gap(net(x_t, t, cond), net(x_t, t, cond | {"guidance": other})) > 1e-4


@pytest.mark.parametrize("embedded", [False, True])
def test_a_new_students_scales_are_silent(
    make_config: MakeConfig, make_inputs: MakeInputs, embedded: bool
) -> None:
    config = make_config(guided=True, embedded_scales=embedded)
    net = DenoisingUNet(config).eval().requires_grad_(False)
    x_t, t, cond = make_inputs(net.config, 1)
    assert gap(net(x_t, t, cond), net(x_t, t, cond | {"guidance": 3 * cond["guidance"]})) == 0.0


def test_a_student_starts_as_its_teacher_but_for_an_empty_token(
    make_net: MakeNet, make_inputs: MakeInputs
) -> None:
    teacher = make_net()
    student = student_of(teacher, prefix_frames=0)
    x_t, t, cond = make_inputs(teacher.config, 2)
    wanted = teacher(x_t, t, cond)
    with torch.no_grad():
        made = student(x_t, t, cond)
    assert 0.0 < gap(made, wanted) < 0.3 * float(wanted.std())
    assert student.config == replace(teacher.config, guided=True)
    # It is trained without a change to its teacher.
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student.conv_out.bias.add_(1.0)
    assert gap(teacher(x_t, t, cond), wanted) == 0.0


def test_every_parameter_of_a_student_learns(make_net: MakeNet, make_inputs: MakeInputs) -> None:
    student = student_of(make_net(), prefix_frames=2).train()
    with torch.no_grad():  # a silent token's first layer learns once the second has begun to
        for parameter in (*student.audio_scale.parameters(), *student.reference_scale.parameters()):
            parameter.add_(0.1)
    x_t, t, cond = make_inputs(student.config, 2)
    student(x_t, t, cond).square().mean().backward()
    idle = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("guided", [False, True])
def test_the_projects_sampler_and_guidance_drive_it(
    make_net: MakeNet, make_inputs: MakeInputs, guided: bool
) -> None:
    net = make_net(guided=guided)
    calls: list[int] = []

    def forward(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        calls.append(len(x_t))
        return net(x_t, t, cond)

    noise, _, cond = make_inputs(net.config, 2)
    cond["guidance"] = torch.tensor([[2.0, 1.5]]).expand(2, 2)
    inner = VDenoiser(forward, SCHEDULE)
    denoiser = CFGTokenDenoiser(inner, ((1, 4), (1, 3))) if guided else MultiCFGDenoiser(inner)
    made = sample(denoiser, noise, uniform_timesteps(3), cond=cond, schedule=SCHEDULE)
    assert made.shape == noise.shape and bool(torch.isfinite(made).all())
    assert calls == [2 if guided else 6] * 3


def test_half_precision_inside_leaves_the_callers_precision(
    make_net: MakeNet, make_inputs: MakeInputs
) -> None:
    net = make_net()
    inputs = make_inputs(net.config, 1)
    wanted = net(*inputs)
    made = net.bfloat16()(*inputs)
    assert made.dtype == torch.float32
    assert gap(made, wanted) < 0.1 * float(wanted.abs().max())


class Named(nn.Module):
    """The network with its conditions by name, as an engine exports it."""

    def __init__(self, net: DenoisingUNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.net(x_t, t, cond)


SMALL_STUDENT = {  # one level, and each kind of layer about once: exporting takes seconds
    "channels": (12,),
    "attention": (True,),
    "heads": (3,),
    "motion": MotionConfig((True,), False, (False,), heads=2, attentions=1, groups=2),
    "guided": True,
    "prefix_frames": 2,
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="teacher", marks=pytest.mark.slow),
        pytest.param(SMALL_STUDENT, id="student"),
    ],
)
def test_exports_with_a_dynamic_batch(
    make_net: MakeNet, make_inputs: MakeInputs, changes: dict[str, object]
) -> None:
    net = make_net(**changes)
    x_t, t, cond = make_inputs(net.config, 3)
    cond = {name: cond[name] for name in net.condition_names}
    batch = {0: torch.export.Dim("batch", min=1, max=16)}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # a batch of 1, too
        exported = torch.export.export(
            Named(net),
            (x_t, t, cond),
            dynamic_shapes=(batch, batch, dict.fromkeys(cond, batch)),
        ).module()
    for size in (1, 2, 5):
        x_t, t, cond = make_inputs(net.config, size, seed=size)
        cond = {name: cond[name] for name in net.condition_names}
        assert gap(exported(x_t, t, cond), net(x_t, t, cond)) < CLOSE


def test_the_reference_unet_fills_every_place(make_config: MakeConfig, shake: object) -> None:
    config = make_config(audio_width=None, motion=None)
    net = ReferenceUNet(config).eval().requires_grad_(False)
    sample_, bank = net(torch.randn(2, 3, 6, 4))
    assert sample_.shape == (2, 12, 6, 4)
    places = reference_places(config)
    assert list(places) == ["down.0.0", "mid", "up.1.0", "up.1.1"]
    shapes = {place: (2, 24 >> 2 * level, width) for place, (level, width) in places.items()}
    assert {place: tuple(kept.shape) for place, kept in bank.items()} == shapes


def test_face_locator_and_vae_shapes(shake: Callable[[nn.Module], nn.Module]) -> None:
    locator = shake(FaceLocator(FaceLocatorConfig(2, (4, 6), 12)))
    assert locator(torch.rand(2, 2, 16, 12)).shape == (2, 12, 8, 6)
    vae = VAE(VAEConfig((4, 8, 8), 1, 3, 2)).eval().requires_grad_(False)
    latents = vae.encode(torch.rand(2, 3, 16, 12) * 2 - 1)
    assert latents.shape == (2, 3, 4, 3)
    assert vae.decode(latents).shape == (2, 3, 16, 12)
    with pytest.raises(ValueError, match="12 × 18, expected multiples of 4"):
        vae.encode(torch.rand(1, 3, 18, 12))


def test_wrong_inputs_are_named(make_net: MakeNet, make_inputs: MakeInputs) -> None:
    net = make_net(prefix_frames=2)
    x_t, t, cond = make_inputs(net.config, 1)
    with pytest.raises(ValueError, match="missing: face, prefix"):
        net(x_t, t, {k: v for k, v in cond.items() if k not in ("face", "prefix")})
    with pytest.raises(ValueError, match="audio has tokens of 3 frames, expected 5"):
        net(x_t, t, cond | {"audio": cond["audio"][:, :3]})
    with pytest.raises(ValueError, match="frames = 12, expected at most 9"):
        net(*make_inputs(net.config, 1, frames=10))


def test_wrong_sizes_are_named(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="heads has 1 entries, expected 2"):
        make_config(heads=(3,))
    with pytest.raises(ValueError, match="channels = 12, expected a multiple of heads = 5"):
        make_config(heads=(5, 5))
    with pytest.raises(ValueError, match=r"motion.groups = 32, .* 12, of motion.heads = 8"):
        make_config(motion=MotionConfig((True, True), True, (True, True)))
    with pytest.raises(ValueError, match="prefix_frames = 2, expected 0, or more with motion"):
        make_config(motion=None, prefix_frames=2)
    with pytest.raises(ValueError, match="audio_width = None"):
        DenoisingUNet(make_config(audio_width=None))
    with pytest.raises(ValueError, match="neither audio attention"):
        ReferenceUNet(replace(make_config(), motion=None))

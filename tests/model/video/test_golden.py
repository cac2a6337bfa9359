"""Parity with EchoMimic v1's own code, on its tiny networks and on the real sizes' key lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.audio.whisper import audio_tokens, frame_count, state_indices
from model.diffusion.denoiser import VDenoiser
from model.diffusion.discrete_schedule import LinearBetaSchedule, trailing_steps
from model.diffusion.guidance import MultiCFGDenoiser
from model.diffusion.sampler import sample_steps
from model.video import checkpoints
from model.video.clip import NOISE_LIMIT, ClipDenoiser
from model.video.config import FaceLocatorConfig, UNetConfig, VAEConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.video.weights import Renamer, on_meta

SINGLE_PASS, SAMPLED = 1e-4, 2e-3
SAMPLED_HALF_BANK = 5e-3


@dataclass(frozen=True)
class Golden:
    place: Path
    config: dict[str, Any]
    nets: checkpoints.EchoMimic
    vae: VAE

    def io(self, name: str) -> dict[str, Tensor]:
        return load_file(self.place / f"{name}.io.safetensors")


@pytest.fixture(scope="module")
def echomimic(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The tiny networks, from four files as the release has them."""
    config = json.loads((golden / "config.json").read_text())
    files = tmp_path_factory.mktemp("release")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(golden / "net.safetensors").items():
        net, name = key.split(".", 1)
        file = "motion_module" if "motion_modules" in name else net
        parts.setdefault(file, {})[name] = value
    for file, tensors in parts.items():
        torch.save(tensors, files / f"{file}.pth")
    nets = checkpoints.load_echomimic(
        files,
        torch.float32,
        reference=checkpoints.unet_config(config["reference_unet"]),
        denoising=checkpoints.unet_config(config["denoising_unet"]),
        face_locator=checkpoints.face_locator_config(config["face_locator"]),
    )
    vae = checkpoints.load_vae(
        golden / "vae.safetensors", VAEConfig(channels=(8, 16, 16, 16), groups=4), torch.float32
    )
    return Golden(golden, config, nets, vae)


def worst(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def place_of(key: str) -> str:
    """diffusers' name of a transformer block → the place of ours."""
    parts = key.split(".")
    return "mid" if parts[0] == "mid_block" else f"{parts[0].split('_')[0]}.{parts[1]}.{parts[3]}"


def bank_of(golden: Golden) -> dict[str, Tensor]:
    io = golden.io("reference_unet")
    return {f"reference.{place_of(k[5:])}": v for k, v in io.items() if k.startswith("bank.")}


def test_face_locator(echomimic: Golden) -> None:
    io = echomimic.io("face_locator")
    ours = echomimic.nets.face_locator(io["in.mask"][:, :, 0])
    assert worst(ours, io["out.features"][:, :, 0]) < SINGLE_PASS


def test_reference_unet_and_the_whole_bank(echomimic: Golden) -> None:
    io = echomimic.io("reference_unet")
    sample, bank = echomimic.nets.reference(io["in.latents"])
    assert worst(sample, io["out.sample"]) < SINGLE_PASS
    theirs = bank_of(echomimic)
    assert {f"reference.{place}" for place in bank} == set(theirs)
    for place, features in bank.items():
        assert worst(features, theirs[f"reference.{place}"]) < SINGLE_PASS


CASES = {  # what differs from: everything on, at the file's own step
    "cond": {},
    "cond_t0": {"step": 0},
    "cond_t999": {"step": 999},
    "audio_null": {"has_audio": 0.0},
    "face_null": {"has_face": 0.0},
    "reference_null": {"has_reference": 0.0, "has_face": 1.0},
}


def denoise(golden: Golden, half_bank: bool = False, **changes: float) -> Tensor:
    io = golden.io("denoising_unet")
    step = int(changes.pop("step", int(io["in.timestep"])))
    cond = bank_of(golden)
    if half_bank:
        cond = {place: features.half() for place, features in cond.items()}
    cond |= {"audio": io["in.audio_tokens"], "face": io["in.face_features"][:, :, 0]}
    flags = {"has_audio": 1.0, "has_reference": 1.0} | changes
    cond |= {name: torch.tensor([value]) for name, value in flags.items()}
    x_t = io["in.sample"].transpose(1, 2)
    t = torch.tensor([(step + 1) / 1000])
    return golden.nets.denoiser(x_t, t, cond).transpose(1, 2)


@pytest.mark.parametrize("case", CASES)
def test_denoising_unet(echomimic: Golden, case: str) -> None:
    theirs = echomimic.io("denoising_unet")[f"out.{case}"]
    assert worst(denoise(echomimic, **CASES[case]), theirs) < SINGLE_PASS


@pytest.mark.parametrize("half_bank", [False, True])
def test_denoising_unet_on_both_halves_of_guidance(echomimic: Golden, half_bank: bool) -> None:
    name = "out.cfg_pair_fp16_bank" if half_bank else "out.cfg_pair"
    theirs = echomimic.io("denoising_unet")[name]
    nothing = denoise(echomimic, half_bank, has_audio=0.0, has_reference=0.0)
    ours = torch.cat([nothing, denoise(echomimic, half_bank)])
    assert worst(ours, theirs) < SINGLE_PASS


def modules_by_their_name(net: DenoisingUNet) -> dict[str, torch.nn.Module]:
    """The blocks that the golden trace names."""
    found: dict[str, torch.nn.Module] = {
        "time_embedding": net.time,
        "conv_norm_out": net.norm_out,
        "mid_block.resnets.0": net.mid[0].resnet,
        "mid_block.attentions.0": net.mid[0].spatial,
        "mid_block.motion_modules.0": net.mid[0].temporal,
        "mid_block.resnets.1": net.mid[1].resnet,
    }
    for way, levels in (("down", net.down), ("up", net.up)):
        for i, level in enumerate(levels):
            here = f"{way}_blocks.{i}"
            if level.resize is not None:
                found[f"{here}.{way}samplers.0"] = level.resize
            for j, layer in enumerate(level.layers):
                found[f"{here}.resnets.{j}"] = layer.resnet
                if layer.spatial is not None:
                    found[f"{here}.attentions.{j}"] = layer.spatial
                if layer.temporal is not None:
                    found[f"{here}.motion_modules.{j}"] = layer.temporal
    one = net.down[1].layers[0].spatial
    inside = {
        "norm": one.norm,
        "proj_in": one.proj_in,
        "proj_out": one.proj_out,
        "transformer_blocks.0.norm1": one.self_norm,
        "transformer_blocks.0.attn1": one.self_attention,
        "transformer_blocks.0.norm2": one.audio_norm,
        "transformer_blocks.0.attn2": one.audio_attention,
        "transformer_blocks.0.norm3": one.feed_norm,
        "transformer_blocks.0.ff": one.feed_forward,
    }
    return found | {f"down_blocks.1.attentions.0.{name}": part for name, part in inside.items()}


def test_denoising_unet_block_by_block(echomimic: Golden) -> None:
    trace = echomimic.io("denoising_unet_trace")
    seen: dict[str, Tensor] = {}
    order: list[str] = []
    handles = []
    for name, module in modules_by_their_name(echomimic.nets.denoiser).items():

        def keep(module: object, args: object, out: Tensor, name: str = name) -> None:
            order.append(name)
            seen[name] = out

        handles.append(module.register_forward_hook(keep))
    denoise(echomimic)
    for handle in handles:
        handle.remove()
    assert set(seen) == set(trace) - {"conv_in"}  # there the face's features are in already
    for name, ours in seen.items():
        theirs = trace[name].squeeze(2) if trace[name].ndim == 5 else trace[name]
        frame = 2 if len(ours) > 1 else 0
        shape = ours[frame : frame + 1].reshape(theirs.shape)
        assert worst(shape, theirs) < SINGLE_PASS, name
    theirs_in_order = [n for n in echomimic.config["call_order"] if n in seen]
    outer = [n for n in order if "attentions.0." not in n]
    assert outer == [n for n in theirs_in_order if "attentions.0." not in n]


def test_vae(echomimic: Golden) -> None:
    io, scale = echomimic.io("vae"), echomimic.vae.config.scale
    assert worst(echomimic.vae.encode(io["in.pixels"]) / scale, io["out.latent_mean"]) < SINGLE_PASS
    assert worst(echomimic.vae.decode(io["in.latents"] * scale), io["out.pixels"]) < SINGLE_PASS


def test_whisper_encoder(echomimic: Golden) -> None:
    io = echomimic.io("whisper_encoder")
    encoder = checkpoints.load_whisper(
        echomimic.place / "whisper_encoder_tiny.safetensors",
        checkpoints.whisper_config(echomimic.config["whisper_encoder"]),
        torch.float32,
    )
    assert worst(encoder(io["in.mel"])[0], io["out.layers"]) < SINGLE_PASS


def test_which_states_a_frame_hears(echomimic: Golden) -> None:
    io = echomimic.io("audio_windows")
    states = io["in.layer_features"]
    for fps in (24, 25):
        theirs = io[f"out.index.fps{fps}"]
        assert frame_count(len(states), fps) == len(theirs)
        assert torch.equal(state_indices(len(states), len(theirs), fps), theirs)
    assert torch.equal(audio_tokens(states, 24), io["out.tokens.fps24"])


@pytest.mark.parametrize("bank", ["fp32bank", "fp16bank"])
def test_sampling_by_the_projects_own_sampler_and_guidance(echomimic: Golden, bank: str) -> None:
    start, io = echomimic.io("sampling_fp32bank"), echomimic.io(f"sampling_{bank}")
    config, scheduler = echomimic.config, echomimic.config["scheduler"]
    picture = start["in.image_uint8"].permute(2, 0, 1)[None].float() / 127.5 - 1.0
    latent = echomimic.vae.encode(picture)
    assert worst(latent, start["mid.ref_latents"]) < SINGLE_PASS
    _, features = echomimic.nets.reference(latent)
    mask = echomimic.io("face_locator")["in.mask"][:, :, 0]
    tokens = echomimic.io("audio_windows")["out.tokens.fps24"][: config["video_length"]]
    cond = {
        f"reference.{place}": kept.half() if bank == "fp16bank" else kept
        for place, kept in features.items()
    }
    cond |= {
        "audio": tokens[None],
        "face": echomimic.nets.face_locator(mask),
        "guidance": torch.full((1, 2), config["guidance_scale"]),
    }
    schedule = LinearBetaSchedule(
        scheduler["num_train_timesteps"],
        first=scheduler["beta_start"],
        last=scheduler["beta_end"],
        zero_terminal_snr=True,
    )
    steps = trailing_steps(config["steps"], schedule.steps)
    denoiser = ClipDenoiser(
        MultiCFGDenoiser(VDenoiser(echomimic.nets.denoiser, schedule)),
        steps[:, 0],
        size=config["context_frames"],
        overlap=config["context_overlap"],
    )
    x = start["mid.initial_latents"].transpose(1, 2)
    assert float(x.abs().max()) <= NOISE_LIMIT
    limit = SAMPLED if bank == "fp32bank" else SAMPLED_HALF_BANK
    for k in range(config["steps"]):
        assert round(float(steps[k, 0]) * schedule.steps) - 1 == int(io[f"step{k}.timestep"])
        x = sample_steps(denoiser, x, steps[k : k + 1], cond=cond, schedule=schedule)
        assert worst(x.transpose(1, 2), io[f"step{k}.latents"]) < limit
    if bank == "fp32bank":
        frame = (echomimic.vae.decode(x[:, -1]) / 2 + 0.5).clamp(0, 1)
        assert worst(frame, start["out.video_last_frame"][:, :, 0]) < limit


REAL: dict[str, tuple[Callable[[], torch.nn.Module], checkpoints.Rules]] = {
    "reference_unet.pth": (
        lambda: ReferenceUNet(UNetConfig(audio_width=None, motion=None)),
        checkpoints.UNET,
    ),
    "denoising_unet+motion_module": (lambda: DenoisingUNet(UNetConfig()), checkpoints.UNET),
    "face_locator.pth": (lambda: FaceLocator(FaceLocatorConfig()), checkpoints.FACE_LOCATOR),
}


@pytest.mark.parametrize("file", REAL)
def test_real_sizes_have_the_releases_keys_and_shapes(golden: Path, file: str) -> None:
    theirs = json.loads((golden / "real_keys.json").read_text())[file]
    build, rules = REAL[file]
    net = on_meta(build)
    assert all(p.is_meta for p in net.parameters())
    renamer = Renamer(rules)
    assert {renamer.foreign(k): list(v.shape) for k, v in net.state_dict().items()} == theirs

"""Foreign checkpoints go in and come out unchanged; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.audio.whisper import WhisperConfig, WhisperEncoder
from model.models import WEIGHTS
from model.video import checkpoints
from model.video.config import FaceLocatorConfig, UNetConfig, VAEConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.video.weights import Renamer, fill, load_net, on_meta, save_net
from model.weights_file import read_header

VAE_SIZES = VAEConfig((4, 8, 8), 1, 3, 2)
WHISPER_SIZES = WhisperConfig(mels=6, positions=20, width=8, heads=2, layers=2)
Shake = Callable[[nn.Module], nn.Module]
MakeConfig = Callable[..., UNetConfig]


def foreign(net: nn.Module, rules: checkpoints.Rules) -> dict[str, Tensor]:
    renamer = Renamer(rules)
    return {renamer.foreign(key): value for key, value in net.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


STYLES = {  # rules, a key that gives the style away
    "unet": (checkpoints.UNET, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0."),
    "face locator": (checkpoints.FACE_LOCATOR, "blocks.1."),
    "vae": (checkpoints.VAE_NEW, "decoder.mid_block.attentions.0.to_out.0."),
    "vae, old": (checkpoints.VAE_OLD, "decoder.mid_block.attentions.0.proj_attn."),
    "whisper": (checkpoints.WHISPER, "blocks.1.attn.out."),
}


def net_of(style: str, config: UNetConfig) -> nn.Module:
    if style == "unet":
        return DenoisingUNet(config)
    if style == "face locator":
        return FaceLocator(FaceLocatorConfig(2, (4, 6), 12))
    return WhisperEncoder(WHISPER_SIZES) if style == "whisper" else VAE(VAE_SIZES)


@pytest.mark.parametrize("style", STYLES)
def test_keys_go_out_and_come_back(style: str, make_config: MakeConfig, shake: Shake) -> None:
    rules, typical = STYLES[style]
    net = shake(net_of(style, make_config()))
    tensors = foreign(net, rules)
    assert {f"{typical}weight", f"{typical}bias"} <= set(tensors)
    assert len(tensors) == len(net.state_dict())
    other = on_meta(lambda: net_of(style, make_config()))
    checkpoints.load(other, tensors, rules)
    assert same(net, other)


def test_missing_surplus_and_misshapen_keys_are_named_as_the_file_has_them(
    make_config: MakeConfig,
) -> None:
    net = DenoisingUNet(make_config())
    tensors = foreign(net, checkpoints.UNET)
    gone = "mid_block.motion_modules.0.temporal_transformer.proj_in.weight"
    wrong = "up_blocks.1.resnets.0.conv1.bias"
    del tensors[gone]
    tensors[wrong] = torch.zeros(7)
    tensors["text_encoder.weight"] = torch.zeros(1)
    tensors["conv_in.2.weight"] = torch.zeros(1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        checkpoints.load(net, tensors, checkpoints.UNET)
    message = str(caught.value)
    assert f"missing {gone}" in message
    assert f"{wrong} has shape (7,), expected (12,)" in message
    assert "surplus text_encoder.weight" in message and "surplus conv_in.2.weight" in message
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_many_misfits_are_counted(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="missing .* and [0-9]+ more$"):
        checkpoints.load(DenoisingUNet(make_config()), {}, checkpoints.UNET)


def test_what_only_a_student_has_is_named_by_its_own_key(make_config: MakeConfig) -> None:
    teacher = DenoisingUNet(make_config())
    with pytest.raises(ValueError, match="missing audio_scale.hidden.weight"):
        tensors = foreign(teacher, checkpoints.UNET)
        checkpoints.load(DenoisingUNet(make_config(guided=True)), tensors, checkpoints.UNET)


def release(place: Path, config: UNetConfig, shake: Shake) -> checkpoints.EchoMimic:
    """Tiny networks, and their four files as EchoMimic v1 ships them."""
    still = UNetConfig(
        **{
            **{name: getattr(config, name) for name in config.__dataclass_fields__},
            "audio_width": None,
            "motion": None,
        }
    )
    nets = checkpoints.EchoMimic(
        ReferenceUNet(still), DenoisingUNet(config), FaceLocator(FaceLocatorConfig(1, (4, 6), 12))
    )
    for net in (nets.reference, nets.denoiser, nets.face_locator):
        shake(net)
    torch.save(foreign(nets.reference, checkpoints.UNET), place / "reference_unet.pth")
    torch.save(foreign(nets.face_locator, checkpoints.FACE_LOCATOR), place / "face_locator.pth")
    whole = foreign(nets.denoiser, checkpoints.UNET)
    moving = {key for key in whole if "motion_modules" in key}
    torch.save({k: whole[k] for k in moving}, place / "motion_module.pth")
    torch.save({k: whole[k] for k in whole.keys() - moving}, place / "denoising_unet.pth")
    return nets


def test_the_four_files_of_a_release(tmp_path: Path, make_config: MakeConfig, shake: Shake) -> None:
    config = make_config()
    nets = release(tmp_path, config, shake)
    load = partial(
        checkpoints.load_echomimic,
        tmp_path,
        reference=nets.reference.config,
        denoising=config,
        face_locator=nets.face_locator.config,
    )
    loaded = load()
    assert same(loaded.reference, nets.reference)
    assert same(loaded.denoiser, nets.denoiser)
    assert same(loaded.face_locator, nets.face_locator)
    half = load(torch.float16)
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.float16}

    torch.save({"conv_in.bias": torch.zeros(12)}, tmp_path / "motion_module.pth")
    with pytest.raises(ValueError, match="conv_in.bias"):
        load()
    (tmp_path / "motion_module.pth").unlink()
    with pytest.raises(ValueError, match=r"no weights at .*motion_module.pth"):
        load()


@pytest.mark.parametrize("style", ["vae", "vae, old"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_vae_with_either_names(tmp_path: Path, shake: Shake, style: str, suffix: str) -> None:
    net = shake(VAE(VAE_SIZES))
    tensors = foreign(net, STYLES[style][0])
    path = tmp_path / f"vae.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    assert same(checkpoints.load_vae(path, VAE_SIZES), net)


def test_whispers_own_file_and_its_encoder_alone(tmp_path: Path, shake: Shake) -> None:
    net = shake(WhisperEncoder(WHISPER_SIZES))
    tensors = foreign(net, checkpoints.WHISPER) | {"ln_post.weight": torch.ones(8)}
    save_file(tensors, tmp_path / "encoder.safetensors")
    alone = checkpoints.load_whisper(tmp_path / "encoder.safetensors", WHISPER_SIZES)
    assert same(alone, net)

    dims = {"n_mels": 6, "n_audio_ctx": 20, "n_audio_state": 8, "n_audio_head": 2}
    dims |= {"n_audio_layer": 2, "n_vocab": 9, "n_text_state": 8}
    whole = {f"encoder.{key}": value for key, value in tensors.items()}
    whole["decoder.token_embedding.weight"] = torch.zeros(9, 8)
    torch.save({"dims": dims, "model_state_dict": whole}, tmp_path / "tiny.pt")
    assert same(checkpoints.load_whisper(tmp_path / "tiny.pt"), net)

    torch.save({"dims": dims, "model_state_dict": whole | {"x": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="surplus x"):
        checkpoints.load_whisper(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["denoising", "student", "reference", "face locator", "vae"])
def test_own_files_bring_a_network_back(
    tmp_path: Path, make_config: MakeConfig, shake: Shake, kind: str
) -> None:
    net = {
        "denoising": lambda: DenoisingUNet(make_config()),
        "student": lambda: DenoisingUNet(make_config(guided=True, prefix_frames=2)),
        "reference": lambda: ReferenceUNet(make_config(audio_width=None, motion=None)),
        "face locator": lambda: FaceLocator(FaceLocatorConfig(1, (4, 6), 12)),
        "vae": lambda: VAE(VAE_SIZES),
    }[kind]()
    shake(net)
    save_net(tmp_path / "net.safetensors", net, {"steps": 6})
    back, metadata = load_net(tmp_path / "net.safetensors")
    assert (type(back), back.config, metadata) == (type(net), net.config, {"steps": 6})
    assert same(net.half(), back)
    full, _ = load_net(tmp_path / "net.safetensors", torch.float32)
    assert {p.dtype for p in full.parameters()} == {torch.float32}


def test_video_tiny_is_written_with_new_names_and_read_with_old_ones(tmp_path: Path) -> None:
    shipped, copy = WEIGHTS / "video-tiny.safetensors", tmp_path / "copy.safetensors"
    net, metadata = load_net(shipped)
    save_net(copy, net, metadata)
    assert "sound.places" in load_file(shipped) and "audio_encoder.places" in load_file(copy)
    assert "audio_layers" in read_header(copy)["config"]
    again, read = load_net(copy)
    assert (again.config, read) == (net.config, metadata) and same(net, again)


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights at"):
        load_net(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds None, expected one of denoising_unet"):
        load_net(tmp_path / "other.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        checkpoints.load_vae(tmp_path / "list.pth")


def test_two_keys_for_one_parameter_are_refused() -> None:
    rules = (("a", "weight"), ("b", "weight"), ("c", "bias"))
    tensors = {"a": torch.ones(2, 2), "b": torch.ones(2, 2), "c": torch.ones(2)}
    with pytest.raises(ValueError, match="surplus b, the same as a"):
        fill(nn.Linear(2, 2), tensors, Renamer(rules))


SETTINGS = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D"],
    "up_block_types": ["CrossAttnUpBlock3D", "UpBlock3D"],
    "layers_per_block": 3,
    "attention_head_dim": [4, 8],
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "cross_attention_dim": 24,
    "act_fn": "silu",
    "use_motion_module": True,
    "motion_module_resolutions": [1, 8],
    "motion_module_mid_block": False,
    "motion_module_decoder_only": True,
    "motion_module_kwargs": {
        "num_attention_heads": 2,
        "num_transformer_block": 3,
        "attention_block_types": ["Temporal_Self"],
        "temporal_position_encoding": True,
        "temporal_position_encoding_max_len": 24,
        "temporal_attention_dim_div": 2,
    },
}


def test_settings_are_read() -> None:
    config = checkpoints.unet_config(SETTINGS)
    assert (config.channels, config.attention, config.heads) == ((32, 64), (False, True), (4, 8))
    assert (config.layers, config.groups, config.eps, config.audio_width) == (3, 8, 1e-6, 24)
    motion = config.motion
    assert motion is not None
    assert (motion.down, motion.mid, motion.up) == ((False, False), False, (True, False))
    assert (motion.heads, motion.blocks, motion.attentions, motion.width_divisor) == (2, 3, 1, 2)
    assert motion.positions == 24
    assert checkpoints.unet_config(SETTINGS | {"audio_feature_ratio": 2.0}).audio_gain == 2.0
    still = checkpoints.unet_config(SETTINGS | {"use_motion_module": False})
    assert (still.motion, still.audio_width) == (None, None)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu', expected 'silu'"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor = 2"),
        ({"up_block_types": ["UpBlock3D", "UpBlock3D"]}, "up_block_types"),
        (
            {
                "motion_module_kwargs": {
                    **SETTINGS["motion_module_kwargs"],  # type: ignore[dict-item]
                    "attention_block_types": ["Temporal_Cross"],
                }
            },
            "Temporal_Cross",
        ),
    ],
)
def test_settings_that_these_networks_do_not_compute_are_named(
    changed: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        checkpoints.unet_config(SETTINGS | changed)

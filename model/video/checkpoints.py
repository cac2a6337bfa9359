"""Other people's checkpoints: every foreign name of a parameter, setting or file is here."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.audio.whisper import WhisperConfig, WhisperEncoder
from model.video.config import FaceLocatorConfig, MotionConfig, UNetConfig, VAEConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.video.weights import Renamer, Rules, fill, on_meta, read_tensors


def _joined(places: Rules, parts: Rules) -> Rules:
    return tuple((a + c, b + d) for a, b in places for c, d in parts)


_RESNET: Rules = (
    ("norm1", "norm_1"),
    ("conv1", "conv_1"),
    ("time_emb_proj", "time"),
    ("norm2", "norm_2"),
    ("conv2", "conv_2"),
    ("conv_shortcut", "shortcut"),
)
_ATTENTION: Rules = (
    ("to_q", "query"),
    ("to_k", "key"),
    ("to_v", "value"),
    ("to_out.0", "out"),
)
_FEED_FORWARD: Rules = (
    ("ff.net.0.proj", "feed_forward.expand"),
    ("ff.net.2", "feed_forward.shrink"),
)
_SPATIAL: Rules = (
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("proj_out", "proj_out"),
    *_joined(
        (("transformer_blocks.0.", ""),),
        (
            ("norm1", "self_norm"),
            *_joined((("attn1.", "self_attention."),), _ATTENTION),
            ("norm2", "audio_norm"),
            *_joined((("attn2.", "audio_attention."),), _ATTENTION),
            ("norm3", "feed_norm"),
            *_FEED_FORWARD,
        ),
    ),
)
_TEMPORAL: Rules = (
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("proj_out", "proj_out"),
    *_joined(
        (("transformer_blocks.#.", "blocks.#."),),
        (
            *_joined((("attention_blocks.#.", "attentions.#.attention."),), _ATTENTION),
            ("norms.#", "attentions.#.norm"),
            ("ff_norm", "feed_norm"),
            *_FEED_FORWARD,
        ),
    ),
)
_RESNETS: Rules = (
    ("down_blocks.#.resnets.#.", "down.#.layers.#.resnet."),
    ("mid_block.resnets.#.", "mid.#.resnet."),
    ("up_blocks.#.resnets.#.", "up.#.layers.#.resnet."),
)
_SPATIALS: Rules = (
    ("down_blocks.#.attentions.#.", "down.#.layers.#.spatial."),
    ("mid_block.attentions.#.", "mid.#.spatial."),
    ("up_blocks.#.attentions.#.", "up.#.layers.#.spatial."),
)
_TEMPORALS: Rules = (
    ("down_blocks.#.motion_modules.#.temporal_transformer.", "down.#.layers.#.temporal."),
    ("mid_block.motion_modules.#.temporal_transformer.", "mid.#.temporal."),
    ("up_blocks.#.motion_modules.#.temporal_transformer.", "up.#.layers.#.temporal."),
)
_PLAIN: Rules = (
    ("time_embedding.linear_1", "time.0"),
    ("time_embedding.linear_2", "time.2"),
    ("conv_in", "conv_in"),
    ("down_blocks.#.downsamplers.0.conv", "down.#.resize"),
    ("up_blocks.#.upsamplers.0.conv", "up.#.resize"),
    ("conv_norm_out", "norm_out"),
    ("conv_out", "conv_out"),
)
_POSITIONS: Rules = _joined(
    _TEMPORALS,
    (
        (
            "transformer_blocks.#.attention_blocks.#.pos_encoder.pe",
            "blocks.#.attentions.#.positions",
        ),
    ),
)


def _parameters(rules: Rules) -> Rules:
    return _joined(rules, ((".weight", ".weight"), (".bias", ".bias")))


UNET: Rules = (
    *_parameters(
        (
            *_PLAIN,
            *_joined(_RESNETS, _RESNET),
            *_joined(_SPATIALS, _SPATIAL),
            *_joined(_TEMPORALS, _TEMPORAL),
        )
    ),
    *_POSITIONS,
)
FACE_LOCATOR: Rules = _parameters(
    (("conv_in", "conv_in"), ("blocks.#", "blocks.#"), ("conv_out", "conv_out"))
)


def _vae(attention: Rules) -> Rules:
    half: Rules = (
        ("conv_in", "conv_in"),
        *_joined((("down_blocks.#.resnets.#.", "levels.#.blocks.#."),), _RESNET),
        ("down_blocks.#.downsamplers.0.conv", "levels.#.resize"),
        *_joined((("mid_block.resnets.0.", "mid.first."),), _RESNET),
        *_joined((("mid_block.attentions.0.", "mid.attention."),), attention),
        *_joined((("mid_block.resnets.1.", "mid.second."),), _RESNET),
        ("conv_norm_out", "norm_out"),
        ("conv_out", "conv_out"),
    )
    upwards = tuple(
        (a.replace("down_blocks", "up_blocks").replace("downsamplers", "upsamplers"), b)
        for a, b in half
    )
    return _parameters(
        (
            *_joined((("encoder.", "encoder."),), half),
            *_joined((("decoder.", "decoder."),), upwards),
            ("quant_conv", "conv_moments"),
            ("post_quant_conv", "conv_latent"),
        )
    )


VAE_NEW: Rules = _vae((("group_norm", "norm"), *_ATTENTION))
VAE_OLD: Rules = _vae(
    (
        ("group_norm", "norm"),
        ("query", "query"),
        ("key", "key"),
        ("value", "value"),
        ("proj_attn", "out"),
    )
)
WHISPER: Rules = (
    *_parameters(
        (
            ("conv1", "conv_1"),
            ("conv2", "conv_2"),
            *_joined(
                (("blocks.#.", "blocks.#."),),
                (
                    ("attn_ln", "attention_norm"),
                    ("attn.query", "query"),
                    ("attn.key", "key"),
                    ("attn.value", "value"),
                    ("attn.out", "out"),
                    ("mlp_ln", "feed_norm"),
                    ("mlp.0", "expand"),
                    ("mlp.2", "shrink"),
                ),
            ),
        )
    ),
    ("positional_embedding", "positions"),
)


# What no part of these networks reads: text, and a norm that the features never pass through.
WHISPER_UNUSED = ("decoder.", "ln_post.")
WHISPER_PREFIX = "encoder."
ECHOMIMIC_FILES = {
    "reference_unet": ("reference_unet.pth",),
    "denoising_unet": ("denoising_unet.pth", "motion_module.pth"),
    "face_locator": ("face_locator.pth",),
}
# Settings that change what a UNet computes, with the only values that these networks compute.
_FIXED: dict[str, object] = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "use_inflated_groupnorm": True,
    "unet_use_cross_frame_attention": False,
    "unet_use_temporal_attention": False,
    "motion_module_type": "Vanilla",
}


def unet_config(foreign: Mapping[str, Any]) -> UNetConfig:
    """diffusers' and EchoMimic's settings of a UNet; one without motion modules is the reference's.

    Raises ``ValueError`` that names a setting which these networks do not compute.
    """
    for name, allowed in _FIXED.items():
        if name in foreign and foreign[name] != allowed:
            raise ValueError(f"{name} = {foreign[name]!r}, expected {allowed!r}")
    channels = tuple(foreign["block_out_channels"])
    attention = tuple(kind.startswith("CrossAttn") for kind in foreign["down_block_types"])
    upwards = tuple(kind.startswith("CrossAttn") for kind in foreign["up_block_types"])
    if upwards != attention[::-1]:
        raise ValueError(
            f"up_block_types = {list(foreign['up_block_types'])}, expected attention where "
            f"down_block_types has it, in reverse"
        )
    heads = foreign["attention_head_dim"]  # diffusers' name for the number of heads
    denoising = bool(foreign.get("use_motion_module", False))
    return UNetConfig(
        in_channels=foreign["in_channels"],
        out_channels=foreign["out_channels"],
        channels=channels,
        layers=foreign["layers_per_block"],
        attention=attention,
        heads=(heads,) * len(channels) if isinstance(heads, int) else tuple(heads),
        groups=foreign["norm_num_groups"],
        eps=foreign["norm_eps"],
        audio_width=foreign["cross_attention_dim"] if denoising else None,
        audio_gain=foreign.get("audio_feature_ratio", UNetConfig.audio_gain),
        motion=_motion_config(foreign, len(channels)) if denoising else None,
    )


def _motion_config(foreign: Mapping[str, Any], levels: int) -> MotionConfig:
    settings = foreign["motion_module_kwargs"]
    kinds = set(settings["attention_block_types"])
    if kinds != {"Temporal_Self"}:
        raise ValueError(f"attention_block_types = {sorted(kinds)}, expected Temporal_Self")
    resolutions = foreign["motion_module_resolutions"]
    decoder_only = foreign["motion_module_decoder_only"]
    positional = settings["temporal_position_encoding"]
    return MotionConfig(
        down=tuple(2**i in resolutions and not decoder_only for i in range(levels)),
        mid=foreign["motion_module_mid_block"],
        up=tuple(2 ** (3 - i) in resolutions for i in range(levels)),  # 3: also of other depths
        heads=settings["num_attention_heads"],
        blocks=settings["num_transformer_block"],
        attentions=len(settings["attention_block_types"]),
        width_divisor=settings["temporal_attention_dim_div"],
        positions=settings["temporal_position_encoding_max_len"] if positional else None,
    )


def face_locator_config(foreign: Mapping[str, Any]) -> FaceLocatorConfig:
    return FaceLocatorConfig(
        in_channels=foreign["conditioning_channels"],
        channels=tuple(foreign["block_out_channels"]),
        out_channels=foreign["conditioning_embedding_channels"],
    )


def vae_config(foreign: Mapping[str, Any]) -> VAEConfig:
    """diffusers' settings of an `AutoencoderKL`."""
    return VAEConfig(
        channels=tuple(foreign["block_out_channels"]),
        layers=foreign["layers_per_block"],
        latent_channels=foreign["latent_channels"],
        groups=foreign["norm_num_groups"],
        scale=foreign.get("scaling_factor", VAEConfig.scale),
    )


def whisper_config(foreign: Mapping[str, Any]) -> WhisperConfig:
    """OpenAI's ``dims``, of the encoder, with or without ``audio`` in their names."""
    dims = {name.replace("audio_", ""): value for name, value in foreign.items()}
    return WhisperConfig(
        dims["n_mels"], dims["n_ctx"], dims["n_state"], dims["n_head"], dims["n_layer"]
    )


@dataclass(frozen=True)
class EchoMimic:
    """EchoMimic v1's own networks."""

    reference: ReferenceUNet
    denoiser: DenoisingUNet
    face_locator: FaceLocator


def load_echomimic(
    directory: Path,
    dtype: torch.dtype | None = None,
    *,
    reference: UNetConfig | None = None,
    denoising: UNetConfig | None = None,
    face_locator: FaceLocatorConfig | None = None,
) -> EchoMimic:
    """The four files of EchoMimic v1 in ``directory``; sizes are those of the release when None.

    ``dtype`` None keeps the files' precision. Raises ``ValueError`` that names what does not fit.
    """
    nets = EchoMimic(
        on_meta(lambda: ReferenceUNet(reference or UNetConfig(audio_width=None, motion=None))),
        on_meta(lambda: DenoisingUNet(denoising or UNetConfig())),
        on_meta(lambda: FaceLocator(face_locator or FaceLocatorConfig())),
    )
    files = {
        name: joined([read_tensors(directory / file) for file in files])
        for name, files in ECHOMIMIC_FILES.items()
    }
    load(nets.reference, files["reference_unet"], UNET, dtype=dtype)
    load(nets.denoiser, files["denoising_unet"], UNET, dtype=dtype)
    load(nets.face_locator, files["face_locator"], FACE_LOCATOR, dtype=dtype)
    return nets


def joined(parts: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Several files as one. A key in two of them is an error that names it."""
    counts = Counter(key for part in parts for key in part)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} keys are in two files, {twice[0]} is one")
    return ChainMap(*(cast(MutableMapping[str, Tensor], part) for part in parts))


def load_vae(path: Path, config: VAEConfig | None = None, dtype: torch.dtype | None = None) -> VAE:
    """diffusers' `AutoencoderKL`, with the attention's new names or those from before 0.16."""
    net = on_meta(lambda: VAE(config or VAEConfig()))
    tensors = read_tensors(path)
    old = any(key.endswith(".proj_attn.weight") for key in tensors)
    load(net, tensors, VAE_OLD if old else VAE_NEW, dtype=dtype)
    return net


def load_whisper(
    path: Path, config: WhisperConfig | None = None, dtype: torch.dtype | None = None
) -> WhisperEncoder:
    """OpenAI's file (without its decoder), or its encoder alone, which needs a ``config``."""
    tensors = read_tensors(path)
    if "dims" in tensors:
        config = config or whisper_config(tensors["dims"])
        tensors = tensors["model_state_dict"]
    encoder = {
        key.removeprefix(WHISPER_PREFIX): key
        for key in tensors
        if not key.removeprefix(WHISPER_PREFIX).startswith(WHISPER_UNUSED)
    }
    net = on_meta(lambda: WhisperEncoder(config or WhisperConfig()))
    load(net, {name: tensors[key] for name, key in encoder.items()}, WHISPER, dtype=dtype)
    return net


def load(
    net: nn.Module, tensors: Mapping[str, Tensor], rules: Rules, *, dtype: torch.dtype | None = None
) -> None:
    """Fills ``net`` from ``tensors`` with foreign names; see `model.video.weights.fill`."""
    fill(net, tensors, Renamer(rules), dtype=dtype)

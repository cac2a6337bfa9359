"""The denoising UNet: noised video latents and their conditions → a prediction."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.diffusion.denoiser import Conditions
from model.diffusion.scale_token import ScaleToken
from model.video.attention import AttentionContext, Notes, repeat_rows
from model.video.blocks import Backbone, reference_places, sinusoid
from model.video.config import UNetConfig
from model.video.motion_module import TimeAttention

TRAIN_STEPS = 1000  # t = 1 is diffusion step 999, the last
SCALE_FEATURES = 64


def _scale_token(width: int) -> ScaleToken:
    return ScaleToken(width, SCALE_FEATURES, embed=_scale_embedding)


def _scale_embedding(scales: Tensor) -> Tensor:
    # A hundredth of a scale turns the fastest sine by one radian.
    return sinusoid(100.0 * scales, SCALE_FEATURES)


class DenoisingUNet(Backbone):
    """EchoMimic's denoising UNet (arXiv 2407.08136), and a student's, with tokens for guidance.

    Latents are in the caller's precision; the network runs in that of its weights. The forward is
    `denoise` of `context`, so an engine can run the first part once per window.
    """

    def __init__(self, config: UNetConfig) -> None:
        if config.audio_width is None:
            raise ValueError("audio_width = None, a denoising UNet needs the width of its tokens")
        super().__init__(config)
        first = config.channels[0]
        self.norm_out = nn.GroupNorm(config.groups, first, eps=config.eps)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)
        self._levels = {place: level for place, (level, _) in reference_places(config).items()}
        self._parts = self._context_names()
        if config.guided and config.embedded_scales:
            self.scales = nn.ModuleList(_scale_token(config.time_width) for _ in range(2))
        elif config.guided:
            self.audio_scale = _scale_token(config.audio_width)
            self.reference_scale = nn.ModuleDict(
                {
                    str(level): _scale_token(wide)
                    for level, wide in reference_places(config).values()
                }
            )

    def _context_names(self) -> tuple[str, ...]:
        names = ["audio", "face", *(f"reference.{place}" for place in self._levels)]
        if not self.config.guided:
            names.append("has_reference")
        elif self.config.embedded_scales:
            names.append("scales")
        if self.config.prefix_frames:
            times = (m for m in self.modules() if isinstance(m, TimeAttention))
            names += [f"past.{attention.place}" for attention in times]
        return tuple(names)

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The conditions that `forward` reads."""
        names = ["audio", "face", *(f"reference.{place}" for place in self._levels)]
        if self.config.prefix_frames:
            names.append("prefix")
        names += ["guidance"] if self.config.guided else ["has_audio", "has_reference"]
        return tuple(names)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """``x_t`` (B, T, C, H, W), ``t`` (B,) in [0, 1] → the prediction, like ``x_t``.

        ``cond``, with P = `UNetConfig.prefix_frames` clean frames before the window:
        ``audio`` (B, P + T, S, W_audio) tokens of each frame; ``face`` (B, C_0, H, W) features of
        the face locator; ``reference.PLACE`` (B, L, C) of the reference UNet, for each of
        `reference_places`; ``prefix`` (B, P, C, H, W), if P. Flags (B,) of 0 or 1 leave out:
        ``has_audio`` (the audio becomes zeros), ``has_reference``, and ``has_face``, which defaults
        to ``has_reference``: guidance switches both together.
        A student takes ``guidance`` (B, 2) (audio scale, reference scale) in place of the flags.
        """
        return self.denoise(x_t, t, self.context(cond))

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        """What `denoise` needs of the conditions of `forward`: computed once for all sampler steps.

        With a prefix this is a pass over its frames. Every tensor is (B, ...).
        """
        missing = [name for name in self.condition_names if name not in cond]
        if missing:
            raise ValueError(f"conditions are missing: {', '.join(missing)}")
        parts = self._conditions(cond)
        prefix = self.config.prefix_frames
        if prefix:
            clean = cond["prefix"]
            # Copies: an exported graph would specialise on a view's layout for a batch of one.
            places = torch.arange(parts["audio"].shape[1], device=clean.device)
            before = parts | {"audio": parts["audio"].index_select(1, places[:prefix])}
            kept: Notes = {}
            # Clean frames get the cleanest trained step, 0.
            step = torch.zeros(clean.shape[0], device=clean.device)
            self._features(clean, step, before, kept=kept)
            parts |= {f"past.{place}": seen for place, seen in kept.items()}
            parts["audio"] = parts["audio"].index_select(1, places[prefix:])
        return tuple(parts[name] for name in self._parts)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """``x_t``, ``t`` and the `context` of the same rows → the prediction, like ``x_t``."""
        parts = dict(zip(self._parts, context, strict=True))
        given, frames = parts["audio"].shape[1], x_t.shape[1]
        if given != frames:
            prefix = self.config.prefix_frames
            raise ValueError(
                f"audio has tokens of {prefix + given} frames, expected {prefix + frames}: "
                f"{prefix} of the prefix and {frames} of the window"
            )
        x = self._features(x_t, t.float() * TRAIN_STEPS - 1, parts)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x.reshape(x_t.shape[0], x_t.shape[1], *x.shape[1:]).to(x_t.dtype)

    def _features(
        self, x: Tensor, index: Tensor, parts: Notes, *, kept: Notes | None = None
    ) -> Tensor:
        """``x`` (B, T, C, H, W) at diffusion step ``index`` (B,) → (B · T, C_0, H, W)."""
        frames = x.shape[1]
        past = {p.removeprefix("past."): v for p, v in parts.items() if p.startswith("past.")}
        context = AttentionContext(
            frames=frames,
            audio=parts["audio"].flatten(0, 1),
            references={place: parts[f"reference.{place}"] for place in self._levels},
            has_reference=None if self.config.guided else parts["has_reference"] > 0.5,
            past=past or None,
            kept=kept,
        )
        x = self.conv_in(x.flatten(0, 1).to(self.conv_in.weight.dtype))
        x = x + repeat_rows(parts["face"], frames)
        time = self.embed_time(index)
        if "scales" in parts:
            time = time + parts["scales"]
        return self.run(x, repeat_rows(time, frames), context)

    def _conditions(self, cond: Conditions) -> Notes:
        """Dropped conditions zeroed, and a student's scales as tokens or embedding."""
        dtype = self.conv_in.weight.dtype
        audio, face = cond["audio"].to(dtype), cond["face"].to(dtype)
        references = {place: cond[f"reference.{place}"].to(dtype) for place in self._levels}
        parts: Notes = {}
        if self.config.guided and self.config.embedded_scales:
            scales = zip(self.scales, cond["guidance"].unbind(1), strict=True)
            parts["scales"] = torch.stack([net(scale) for net, scale in scales]).sum(0)[:, 0]
        elif self.config.guided:
            s_aud, s_ref = cond["guidance"].unbind(1)
            token = self.audio_scale(s_aud)[:, None].expand(-1, audio.shape[1], -1, -1)
            audio = torch.cat([audio, token], dim=2)
            tokens = {name: net(s_ref) for name, net in self.reference_scale.items()}
            references = {
                place: torch.cat([features, tokens[str(self._levels[place])]], dim=1)
                for place, features in references.items()
            }
        else:
            has_face = cond.get("has_face", cond["has_reference"])
            audio = audio * cond["has_audio"].to(dtype)[:, None, None, None]
            face = face * has_face.to(dtype)[:, None, None, None]
            parts["has_reference"] = cond["has_reference"]
        parts |= {"audio": audio, "face": face}
        return parts | {f"reference.{place}": kept for place, kept in references.items()}


def student_of(teacher: DenoisingUNet, prefix_frames: int) -> DenoisingUNet:
    """A student that starts as ``teacher``, with zero tokens for guidance and a prefix.

    Its parameters are trainable copies in the teacher's precision and on its device.
    """
    config = replace(teacher.config, guided=True, prefix_frames=prefix_frames)
    with teacher.conv_in.weight.device:
        student = DenoisingUNet(config).to(teacher.conv_in.weight.dtype)
    own = student.state_dict()
    student.load_state_dict(own | teacher.state_dict())
    return student.train(teacher.training)

"""The denoising UNet: noised video latents and what they are conditioned on → a prediction.

Knows: shapes of latents and conditions. Does not know: noise schedules, guidance formulas, nor
what it predicts (the checkpoints that load are v-predictors; `model.diffusion.denoiser` says so).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.diffusion.denoiser import Conditions
from model.video.attention import Context, repeat_rows
from model.video.blocks import Backbone, reference_places, sinusoid
from model.video.config import UNetConfig

TRAIN_STEPS = 1000  # t = 1 is diffusion step 999, the last


class ScaleToken(nn.Module):
    """(B,) guidance scales → (B, 1, W) tokens (FADA, arXiv 2412.16915, section 3.3).

    Starts at zero: a student starts as its teacher does but for one empty token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, scales: Tensor) -> Tensor:
        # A hundredth of a scale turns the fastest sine by one radian.
        waves = sinusoid(100.0 * scales, 64).to(self.hidden.weight.dtype)
        return torch.as_tensor(self.out(F.silu(self.hidden(waves)))[:, None])


class DenoisingUNet(Backbone):
    """EchoMimic's denoising UNet (arXiv 2407.08136), and a student's, with tokens for guidance.

    Latents stay in the caller's precision; inside, the network runs in that of its weights.
    """

    def __init__(self, config: UNetConfig) -> None:
        if config.audio_width is None:
            raise ValueError("audio_width = None, a denoising UNet needs the width of its tokens")
        super().__init__(config)
        first = config.channels[0]
        self.norm_out = nn.GroupNorm(config.groups, first, eps=config.eps)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)
        self._levels = {place: level for place, (level, _) in reference_places(config).items()}
        if config.guided:
            self.audio_scale = ScaleToken(config.audio_width)
            self.reference_scale = nn.ModuleDict(
                {str(level): ScaleToken(wide) for level, wide in reference_places(config).values()}
            )

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
        ``has_audio`` (the sound becomes zeros), ``has_reference``, and ``has_face``, which is as
        ``has_reference`` where it is not given: guidance switches both together.
        A student takes ``guidance`` (B, 2) (audio scale, reference scale) in place of the flags.
        """
        prefix = self.config.prefix_frames
        self._check(x_t, cond)
        batch, frames = x_t.shape[0], x_t.shape[1] + prefix
        dtype = self.conv_in.weight.dtype
        index = (t.float() * TRAIN_STEPS - 1)[:, None].expand(-1, x_t.shape[1])
        x = x_t
        if prefix:
            x = torch.cat([cond["prefix"].to(x_t), x_t], dim=1)
            # What is clean is told the cleanest time that was trained.
            index = torch.cat([torch.zeros_like(index[:, :1]).expand(-1, prefix), index], dim=1)
        face = cond["face"].to(dtype)
        if not self.config.guided:
            has_face = cond.get("has_face", cond["has_reference"])
            face = face * has_face.to(dtype)[:, None, None, None]
        x = self.conv_in(x.flatten(0, 1).to(dtype)) + repeat_rows(face, frames)
        x = self.run(x, self.embed_time(index.flatten()), self._context(cond, frames))
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x.reshape(batch, frames, *x.shape[1:])[:, prefix:].to(x_t.dtype)

    def _context(self, cond: Conditions, frames: int) -> Context:
        dtype = self.conv_in.weight.dtype
        audio = cond["audio"].to(dtype)
        references = {place: cond[f"reference.{place}"].to(dtype) for place in self._levels}
        has_reference = None
        if self.config.guided:
            s_aud, s_ref = cond["guidance"].unbind(1)
            token = self.audio_scale(s_aud)[:, None].expand(-1, frames, -1, -1)
            audio = torch.cat([audio, token], dim=2)
            tokens = {name: net(s_ref) for name, net in self.reference_scale.items()}
            references = {
                place: torch.cat([features, tokens[str(self._levels[place])]], dim=1)
                for place, features in references.items()
            }
        else:
            audio = audio * cond["has_audio"].to(dtype)[:, None, None, None]
            has_reference = cond["has_reference"] > 0.5
        return Context(
            frames=frames,
            audio=audio.flatten(0, 1),
            references=references,
            has_reference=has_reference,
            prefix=self.config.prefix_frames,
        )

    def _check(self, x_t: Tensor, cond: Conditions) -> None:
        missing = [name for name in self.condition_names if name not in cond]
        if missing:
            raise ValueError(f"conditions are missing: {', '.join(missing)}")
        wanted = x_t.shape[1] + self.config.prefix_frames
        if cond["audio"].shape[1] != wanted:
            raise ValueError(
                f"audio has tokens of {cond['audio'].shape[1]} frames, expected {wanted}: "
                f"{self.config.prefix_frames} of the prefix and {x_t.shape[1]} of the window"
            )


def student_of(teacher: DenoisingUNet, prefix_frames: int) -> DenoisingUNet:
    """A student that starts as ``teacher``, with silent tokens for guidance and a prefix.

    Its parameters are copies, ready to be trained, of the teacher's precision and device.
    """
    config = replace(teacher.config, guided=True, prefix_frames=prefix_frames)
    with teacher.conv_in.weight.device:
        student = DenoisingUNet(config).to(teacher.conv_in.weight.dtype)
    own = student.state_dict()
    student.load_state_dict(own | teacher.state_dict())
    return student.train(teacher.training)

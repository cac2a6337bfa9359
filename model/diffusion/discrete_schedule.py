"""The schedule and the steps of teachers that were trained on discrete noises."""

from __future__ import annotations

import torch
from torch import Tensor


class LinearBetaSchedule:
    """DDPM's schedule of ``steps`` discrete noises, betas rising linearly (arXiv 2006.11239).

    ``zero_terminal_snr`` shifts and stretches α so that it ends at exactly 0 and begins where it
    began (Lin et al. 2024, arXiv 2305.08891, algorithm 1). Time k / steps is after step k - 1, time
    0 is clean data; between them α is interpolated, so any t may be asked for.
    """

    def __init__(self, steps: int, *, first: float, last: float, zero_terminal_snr: bool) -> None:
        if steps < 2 or not 0.0 < first <= last < 1.0:
            raise ValueError(
                f"steps = {steps}, betas = {first} to {last}, "
                "expected 2 or more, rising between 0 and 1"
            )
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
        alpha = (1.0 - betas).cumprod(0).sqrt()
        if zero_terminal_snr:
            alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        self.steps = steps
        self._alpha = torch.cat([torch.ones(1, dtype=torch.float64), alpha])

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        place = (t.double() * self.steps).clamp(0.0, float(self.steps))
        below = place.floor().clamp(max=self.steps - 1)
        table = self._alpha.to(t.device)
        left, right = table[below.long()], table[below.long() + 1]
        alpha = left + (place - below) * (right - left)
        return alpha.to(t.dtype), (1.0 - alpha * alpha).sqrt().to(t.dtype)


def trailing_steps(steps: int, train_steps: int) -> Tensor:
    """(steps, 2): the times at which each DDIM step of a discretely trained teacher begins, ends.

    Steps begin evenly spaced from the last trained time (arXiv 2305.08891, section 3.3), rounded to
    trained ones. Each ends a whole train_steps // steps trained times earlier, as diffusers has it,
    which with the rounding may lie a thousandth beside the next one's beginning.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps = {steps}, expected 1 to {train_steps}")
    starts = (train_steps - torch.arange(steps, dtype=torch.float64) * train_steps / steps).round()
    ends = (starts - train_steps // steps).clamp(min=0.0)
    return (torch.stack([starts, ends], dim=1) / train_steps).float()

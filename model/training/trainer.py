"""A training run: optimiser, average of the weights, checkpoints, progress.

Knows: how to minimise a loss for some minutes and go on after an interruption. Does not know:
what is trained or on what.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

QUICK = 4.0

Net = TypeVar("Net", bound=nn.Module)
Losses = dict[str, Tensor]  # scalars; ``loss`` is minimised, the rest is only written down


@dataclass(frozen=True)
class RunOptions:
    """How long and how fast."""

    folder: Path
    minutes: float
    steps: int | None = None  # stops here even if minutes are left
    peak_rate: float = 1e-3
    warm_up_steps: int = 200
    average: float = 0.998  # of the exponential moving average that is kept
    checkpoint_every_s: float = 120.0


class Trainer(Generic[Net]):
    """Trains ``net`` in place; `averaged` is the network to keep."""

    def __init__(
        self, net: Net, options: RunOptions, random: torch.Generator, quick: str | None = None
    ) -> None:
        """``quick``: parameters with this in their names learn `QUICK` times as fast."""
        self.net, self._options, self._random = net, options, random
        self.averaged = copy.deepcopy(net)
        self.averaged.requires_grad_(False)
        named = list(net.named_parameters())
        fast = [p for name, p in named if quick is not None and quick in name]
        rest = [p for name, p in named if quick is None or quick not in name]
        groups = [{"params": rest, "pace": 1.0}, {"params": fast, "pace": QUICK}]
        self._optimiser = torch.optim.AdamW(
            groups[: 2 if fast else 1], lr=options.peak_rate, betas=(0.9, 0.98), weight_decay=0.02
        )
        self.step = 0
        self._spent_s = 0.0
        self._checkpoint = options.folder / "checkpoint.pt"
        if self._checkpoint.is_file():
            self._resume()

    def run(self, losses: Callable[[], Losses], on_checkpoint: Callable[[], None]) -> None:
        """Minimises until the time or the steps are used up, then saves a last time.

        ``losses`` draws a batch and returns its losses; ``on_checkpoint`` is called after every
        checkpoint and at the end (to write the weights out).
        """
        options = self._options
        options.folder.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=round(options.minutes * 60), initial=round(self._spent_s), unit="s")
        saved = time.monotonic()
        with SummaryWriter(str(options.folder)) as board, bar:
            while not self._finished():
                started = time.monotonic()
                values = self._update(losses)
                self._spent_s += time.monotonic() - started
                if self.step % 20 == 0:
                    for name, value in values.items():
                        board.add_scalar(name, float(value), self.step)
                    bar.n = min(bar.total, round(self._spent_s))
                    bar.set_postfix_str(
                        f"step {self.step} "
                        + " ".join(f"{k} {float(v):.3f}" for k, v in values.items())
                    )
                if time.monotonic() - saved > options.checkpoint_every_s:
                    self._save()
                    on_checkpoint()
                    saved = time.monotonic()
        self._save()
        on_checkpoint()

    def _finished(self) -> bool:
        options = self._options
        out_of_steps = options.steps is not None and self.step >= options.steps
        return out_of_steps or self._spent_s >= options.minutes * 60

    def _progress(self) -> float:
        done = self._spent_s / (self._options.minutes * 60)
        if self._options.steps is not None:
            done = max(done, self.step / self._options.steps)
        return min(done, 1.0)

    def _update(self, losses: Callable[[], Losses]) -> Losses:
        options = self._options
        warm = min(1.0, (self.step + 1) / options.warm_up_steps)
        # half a cosine over the run, down to 2 %: the end of a run is where detail comes
        cooled = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self._progress()))
        for group in self._optimiser.param_groups:
            group["lr"] = options.peak_rate * warm * cooled * group["pace"]
        values = losses()
        if not bool(torch.isfinite(values["loss"])):
            raise FloatingPointError(f"the loss is {values['loss'].item()} at step {self.step}")
        self._optimiser.zero_grad(set_to_none=True)
        values["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimiser.step()
        self.step += 1
        # a young average follows closely, else it would remember the initial weights
        keep = min(options.average, (1 + self.step) / (10 + self.step))
        pairs = zip(self.averaged.parameters(), self.net.parameters(), strict=True)
        with torch.no_grad():
            for average, current in pairs:
                average.lerp_(current, 1 - keep)
        return {name: value.detach() for name, value in values.items()}

    def _save(self) -> None:
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(
            {
                "net": self.net.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "random": self._random.get_state(),
                "step": self.step,
                "spent_s": self._spent_s,
            },
            partial,
        )
        partial.replace(self._checkpoint)

    def _resume(self) -> None:
        saved = torch.load(self._checkpoint, weights_only=True)
        self.net.load_state_dict(saved["net"])
        self.averaged.load_state_dict(saved["averaged"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self._random.set_state(saved["random"])
        self.step, self._spent_s = saved["step"], saved["spent_s"]

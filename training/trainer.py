"""A training run: optimiser, average of the weights, checkpoints, progress."""

from __future__ import annotations

import contextlib
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

from training.distributed import ALONE, Team

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
    bf16: bool = False  # products in bfloat16; parameters and sums stay as they are


class Trainer(Generic[Net]):
    """Trains ``net`` in place; `averaged` is the network to keep.

    In a team each process passes the same ``net`` and keeps a part of it; `averaged` is whole: for
    the leader whenever a checkpoint is written, for the others at the end.
    """

    def __init__(
        self,
        net: Net,
        options: RunOptions,
        random: torch.Generator,
        quick: str | None = None,
        team: Team = ALONE,
    ) -> None:
        """``quick``: parameters with this in their names learn `QUICK` times as fast.

        Raises ``ValueError`` for the checkpoint of a team of another size.
        """
        self.net, self._options, self._random, self._team = net, options, random, team
        self.averaged = copy.deepcopy(net)
        self.averaged.requires_grad_(False)
        self._average = self.averaged if team.size == 1 else copy.deepcopy(self.averaged)
        team.share(net)
        team.share(self._average)
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
        checkpoint and at the end (to write the weights out), for the leader alone.
        """
        options, quiet = self._options, not self._team.leads
        options.folder.mkdir(parents=True, exist_ok=True)
        total, unit = round(options.minutes * 60), "s"
        if options.steps is not None:
            total, unit = options.steps, "step"
        bar = tqdm(total=total, initial=self._done(), unit=unit, disable=quiet)
        board = None if quiet else SummaryWriter(str(options.folder))
        saved_s = self._spent_s
        with contextlib.closing(board) if board else contextlib.nullcontext(), bar:
            while not self._finished():
                started = time.monotonic()
                values = self._update(losses)
                spent_s = self._spent_s + time.monotonic() - started
                self._spent_s = self._team.of_leader(spent_s)
                if board is not None and self.step % 20 == 0:
                    self._show(values, board, bar)
                if self._spent_s - saved_s > options.checkpoint_every_s:
                    self._save(on_checkpoint)
                    saved_s = self._spent_s
        self._save(on_checkpoint)
        self._team.wait()
        if not self._team.leads:
            saved = torch.load(self._checkpoint, weights_only=True)
            self.averaged.load_state_dict(saved["averaged"])

    def _show(self, values: Losses, board: SummaryWriter, bar: tqdm) -> None:
        for name, value in values.items():
            board.add_scalar(name, float(value), self.step)
        bar.n = min(bar.total, self._done())
        words = " ".join(f"{name} {float(value):.3f}" for name, value in values.items())
        bar.set_postfix_str(f"step {self.step} {words}")

    def _done(self) -> int:
        """Steps, where these end the run, else seconds."""
        return round(self._spent_s) if self._options.steps is None else self.step

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
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
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
        pairs = zip(self._average.parameters(), self.net.parameters(), strict=True)
        with torch.no_grad():
            for average, current in pairs:
                average.lerp_(current, 1 - keep)
        return {name: value.detach() for name, value in values.items()}

    def _save(self, on_checkpoint: Callable[[], None]) -> None:
        team = self._team
        average = team.weights(self._average)
        state = {
            "net": team.weights(self.net),
            "averaged": average,
            "optimiser": team.optimiser_state(self.net, self._optimiser),
            "random": team.all_of(self._random.get_state()),
            "step": self.step,
            "spent_s": self._spent_s,
        }
        if not team.leads:
            return
        if team.size > 1:
            self.averaged.load_state_dict(average)
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)
        on_checkpoint()

    def _resume(self) -> None:
        team = self._team
        saved = torch.load(self._checkpoint, weights_only=True)
        random = saved["random"].reshape(-1, self._random.get_state().numel())
        if len(random) != team.size:
            raise ValueError(
                f"{self._checkpoint} is of {len(random)} processes, expected {team.size}"
            )
        team.put_weights(self.net, saved["net"])
        team.put_weights(self._average, saved["averaged"])
        team.put_optimiser_state(self.net, self._optimiser, saved["optimiser"])
        # A copy: `set_state` reads a view from its storage's beginning.
        self._random.set_state(random[team.rank].clone())
        self.step, self._spent_s = saved["step"], saved["spent_s"]

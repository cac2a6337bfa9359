"""A training run: optimiser, weight average (EMA), checkpoints, progress."""

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

from training.distributed import SINGLE_PROCESS, World

FAST_RATE = 4.0  # times the learning rate

Net = TypeVar("Net", bound=nn.Module)
Losses = dict[str, Tensor]  # scalars; ``loss`` is minimised, the others are only logged


@dataclass(frozen=True)
class RunOptions:
    """Length, learning rate and files of a run."""

    folder: Path
    minutes: float
    steps: int | None = None  # stop here even if minutes are left
    peak_rate: float = 1e-3
    warm_up_steps: int = 200
    average: float = 0.998  # decay of the exponential moving average (EMA) of the weights
    checkpoint_every_s: float = 120.0
    bf16: bool = False  # run under autocast in bfloat16, with float32 parameters


class Trainer(Generic[Net]):
    """Trains ``net`` in place; `averaged` holds the EMA of its weights, which is what to keep.

    With several processes each passes the same ``net`` and keeps a shard of it. `averaged` is then
    complete in the main process at each checkpoint, and in the others after `run`.
    """

    def __init__(
        self,
        net: Net,
        options: RunOptions,
        random: torch.Generator,
        *,
        fast: str | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        """Resume if ``options.folder`` holds a checkpoint.

        ``random``: its state is saved and restored. ``fast``: parameters with this in their names
        learn at `FAST_RATE` times the rate. Raises ``ValueError`` for a checkpoint of another
        number of processes.
        """
        self.net, self._options, self._random, self._world = net, options, random, world
        self.averaged = copy.deepcopy(net)
        self.averaged.requires_grad_(False)
        self._average = self.averaged if world.size == 1 else copy.deepcopy(self.averaged)
        world.shard(net)
        world.shard(self._average)
        named = list(net.named_parameters())
        quick = [p for name, p in named if fast is not None and fast in name]
        rest = [p for name, p in named if fast is None or fast not in name]
        groups = [{"params": rest, "rate": 1.0}, {"params": quick, "rate": FAST_RATE}]
        self._optimiser = torch.optim.AdamW(
            groups[: 2 if quick else 1], lr=options.peak_rate, betas=(0.9, 0.98), weight_decay=0.02
        )
        self.step = 0
        self._spent_s = 0.0
        self._checkpoint = options.folder / "checkpoint.pt"
        if self._checkpoint.is_file():
            self._resume()

    def run(self, losses: Callable[[], Losses], on_checkpoint: Callable[[], None]) -> None:
        """Train until the time or the steps are used up, then save a last time.

        ``losses`` draws a batch and returns its losses. The main process calls ``on_checkpoint``
        after every checkpoint, e.g. to export the weights. Raises ``FloatingPointError`` if the
        loss is not finite.
        """
        options, quiet = self._options, not self._world.is_main
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
                self._spent_s = self._world.broadcast(spent_s)
                if board is not None and self.step % 20 == 0:
                    self._show(values, board, bar)
                if self._spent_s - saved_s > options.checkpoint_every_s:
                    self._save(on_checkpoint)
                    saved_s = self._spent_s
        self._save(on_checkpoint)
        self._world.barrier()
        if not self._world.is_main:
            saved = torch.load(self._checkpoint, weights_only=True)
            self.averaged.load_state_dict(saved["averaged"])

    def _show(self, values: Losses, board: SummaryWriter, bar: tqdm) -> None:
        for name, value in values.items():
            board.add_scalar(name, float(value), self.step)
        bar.n = min(bar.total, self._done())
        text = " ".join(f"{name} {float(value):.3f}" for name, value in values.items())
        bar.set_postfix_str(f"step {self.step} {text}")

    def _done(self) -> int:
        """Steps if they end the run, else seconds."""
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
        # Half a cosine over the run, down to 2 %: fine detail is learned at small rates.
        cooled = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self._progress()))
        for group in self._optimiser.param_groups:
            group["lr"] = options.peak_rate * warm * cooled * group["rate"]
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            values = losses()
        if not bool(torch.isfinite(values["loss"])):
            raise FloatingPointError(
                f"loss = {values['loss'].item()} at step {self.step}, expected a finite value"
            )
        self._optimiser.zero_grad(set_to_none=True)
        values["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimiser.step()
        self.step += 1
        # Warm up the decay, or the average would remember the initial weights.
        keep = min(options.average, (1 + self.step) / (10 + self.step))
        pairs = zip(self._average.parameters(), self.net.parameters(), strict=True)
        with torch.no_grad():
            for average, current in pairs:
                average.lerp_(current, 1 - keep)
        return {name: value.detach() for name, value in values.items()}

    def _save(self, on_checkpoint: Callable[[], None]) -> None:
        world = self._world
        average = world.model_state(self._average)
        state = {
            "net": world.model_state(self.net),
            "averaged": average,
            "optimiser": world.optimiser_state(self.net, self._optimiser),
            "random": world.all_gather(self._random.get_state()),
            "step": self.step,
            "spent_s": self._spent_s,
        }
        if not world.is_main:
            return
        if world.size > 1:
            self.averaged.load_state_dict(average)
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)
        on_checkpoint()

    def _resume(self) -> None:
        world = self._world
        saved = torch.load(self._checkpoint, weights_only=True)
        random = saved["random"].reshape(-1, self._random.get_state().numel())
        if len(random) != world.size:
            raise ValueError(
                f"{self._checkpoint} is of {len(random)} processes, expected {world.size}"
            )
        world.load_model_state(self.net, saved["net"])
        world.load_model_state(self._average, saved["averaged"])
        world.load_optimiser_state(self.net, self._optimiser, saved["optimiser"])
        # Clone: `set_state` ignores the offset of a view.
        self._random.set_state(random[world.rank].clone())
        self.step, self._spent_s = saved["step"], saved["spent_s"]

"""Several processes that train one network, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class World:
    """This process's ``rank`` among ``size``; only the main one writes files and shows progress.

    Here is the world of one process: networks are not sharded and states are the plain ones.
    `training.sharding.ShardedWorld` is that of several.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """A different seed for each process; ``seed`` itself for the main one."""
        return seed + _SEED_STRIDE * self.rank

    def shard(self, net: nn.Module) -> None:
        """Shard ``net`` in place (FSDP); all processes pass the same parameters."""

    def broadcast(self, value: float) -> float:
        """The main process's ``value``: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared)

    def model_state(self, net: nn.Module) -> dict[str, Any]:
        """The full state of a sharded ``net``, on the CPU; empty except in the main process."""
        return net.state_dict()

    def optimiser_state(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """The full state of a sharded net's ``optimiser``; empty except in the main process."""
        return optimiser.state_dict()

    def load_model_state(self, net: nn.Module, state: dict[str, Any]) -> None:
        """The inverse of `model_state`; all processes pass the full state."""
        net.load_state_dict(state)

    def load_optimiser_state(
        self, net: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """The inverse of `optimiser_state`; all processes pass the full state."""
        optimiser.load_state_dict(state)

    def all_gather(self, state: Tensor) -> Tensor:
        """(size, N): the ``state`` (N,) of each process, by rank, on the CPU."""
        if self.size == 1:
            return state[None]
        own = state.to(self.device)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own)
        return torch.stack(gathered).cpu()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process, then in the others, which find its files."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


SINGLE_PROCESS = World()


@contextmanager
def join_world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that ``torchrun`` started; yields the world and this process's device.

    Of several GPUs it is the one with the process's local rank. Without ``torchrun`` the world is
    `SINGLE_PROCESS`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS, device
        return
    from training.sharding import ShardedWorld  # takes seconds to import

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ShardedWorld(dist.get_rank(), size, device.type), device
    finally:
        dist.destroy_process_group()

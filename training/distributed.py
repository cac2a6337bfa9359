"""Processes that train one network together, as ``torchrun`` starts them.

One process is a team of its own, and nothing is done to its network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class Team:
    """``rank`` of ``size`` processes; the leader alone writes files and shows progress."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """Another one for each process, ``seed`` itself for the leader."""
        return seed + _SEEDS_APART * self.rank

    def share(self, net: nn.Module) -> None:
        """Leaves each process, in place, its part of ``net``, of which all hold the same."""
        if self.size > 1:
            fully_shard(net, mesh=init_device_mesh(self.device, (self.size,)))

    def of_leader(self, value: float) -> float:
        """What the leader passes: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, src=0)
        return float(told)

    def weights(self, net: nn.Module) -> dict[str, Any]:
        """The whole state of a shared ``net``, on the CPU; empty but for the leader."""
        return net.state_dict() if self.size == 1 else get_model_state_dict(net, options=_WHOLE)

    def optimiser_state(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state of the ``optimiser`` of a shared ``net``; empty but for the leader."""
        if self.size == 1:
            return optimiser.state_dict()
        return dict(get_optimizer_state_dict(net, optimiser, options=_WHOLE))

    def put_weights(self, net: nn.Module, state: dict[str, Any]) -> None:
        """The inverse of `weights`; all processes pass the whole state."""
        if self.size == 1:
            net.load_state_dict(state)
        else:
            set_model_state_dict(net, state, options=_WHOLE)

    def put_optimiser_state(
        self, net: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """The inverse of `optimiser_state`; all processes pass the whole state."""
        if self.size == 1:
            optimiser.load_state_dict(state)
        else:
            set_optimizer_state_dict(net, optimiser, state, options=_WHOLE)

    def all_of(self, state: Tensor) -> Tensor:
        """(size, N): everybody's ``state`` (N,) bytes of a generator."""
        if self.size == 1:
            return state[None]
        mine = state.to(self.device)
        everybodys = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everybodys, mine)
        return torch.stack(everybodys).cpu()

    def wait(self) -> None:
        """Until everybody is here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """What is made once and found by the others: they come in when the leader is done."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


ALONE = Team()


@contextmanager
def joined_team(device: torch.device) -> Iterator[tuple[Team, torch.device]]:
    """The team that ``torchrun`` made this process part of, and which ``device`` is its own: of
    several cards the one of its number. A team of one where nobody started several."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), size, device.type), device
    finally:
        dist.destroy_process_group()

"""A network that several processes share (FSDP); torch takes seconds to import what it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from training.distributed import World

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ShardedWorld(World):
    """Several processes: parameters and optimiser states are sharded over them."""

    def shard(self, net: nn.Module) -> None:
        fully_shard(net, mesh=init_device_mesh(self.device, (self.size,)))

    def model_state(self, net: nn.Module) -> dict[str, Any]:
        return get_model_state_dict(net, options=_FULL)

    def optimiser_state(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        return dict(get_optimizer_state_dict(net, optimiser, options=_FULL))

    def load_model_state(self, net: nn.Module, state: dict[str, Any]) -> None:
        set_model_state_dict(net, state, options=_FULL)

    def load_optimiser_state(
        self, net: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        set_optimizer_state_dict(net, optimiser, state, options=_FULL)

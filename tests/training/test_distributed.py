"""Several processes that train one network learn what one process learns of all their batches."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.launcher import LaunchConfig, elastic_launch

from training.distributed import World, join_world
from training.trainer import Losses, RunOptions, Trainer

STEPS, BATCH = 12, 4


def a_net() -> nn.Module:
    torch.manual_seed(0)
    # 5 outputs do not divide by two: a part may be padded
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5))


def batches() -> torch.Tensor:
    return torch.randn(STEPS, BATCH, 3, generator=torch.Generator().manual_seed(1))


def trained(folder: Path, world: World, steps: int) -> nn.Module:
    """Parameters averaged after ``steps``; each process has its part of every batch."""
    net, parts = a_net(), batches().chunk(world.size, dim=1)[world.rank]
    options = RunOptions(folder, minutes=60.0, steps=steps, warm_up_steps=1)
    random = torch.Generator().manual_seed(world.seed(3))
    trainer: Trainer[nn.Module] = Trainer(net, options, random, world=world)

    def losses() -> Losses:
        torch.rand(1, generator=random)
        return {"loss": net(parts[trainer.step]).square().mean()}

    trainer.run(losses, lambda: torch.save(trainer.averaged.state_dict(), folder / "net.pt"))
    return trainer.averaged


def in_each_process(folder: Path) -> None:
    """Half of the steps, then the rest, as after an interruption."""
    with join_world(torch.device("cpu")) as (world, _):
        trained(folder, world, STEPS // 2)
        trained(folder, world, STEPS)


def main(folder: Path) -> None:
    """Start two processes as torchrun does, but forked: they import torch once."""
    importlib.import_module("training.sharding")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="static",
        rdzv_endpoint=address,
        rdzv_configs={"rank": 0},
        start_method="fork",
    )
    elastic_launch(config, in_each_process)(folder)


def test_two_processes_train_like_one_with_both_batches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.test_distributed", str(tmp_path / "two")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    two = torch.load(tmp_path / "two" / "net.pt", weights_only=True)
    # the pace follows the steps a run is to have: the same two runs by one process
    trained(tmp_path / "one", World(), STEPS // 2)
    one = trained(tmp_path / "one", World(), STEPS)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    saved = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == STEPS
    assert not torch.equal(*saved["random"])  # each draws numbers of its own
    with pytest.raises(ValueError, match="is of 2 processes, expected 1"):
        trained(tmp_path / "two", World(), STEPS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

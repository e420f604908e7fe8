"""The code of docs/distributed.md runs on two ranks, and so does examples/ddp.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.distributed.ranks import on_ranks
from tests.docs.blocks import python_blocks
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import metastep as ms

ROOT = Path(__file__).parents[2]
DDP, FSDP2, CHECKPOINT = (block.code for block in python_blocks(ROOT / "docs" / "distributed.md"))


class Blocks(nn.Module):
    """A network with ``blocks``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def snippets(folder: str) -> tuple[int, float]:
    """Run them, each with the names that a reader has; how many steps, and the global rate under FSDP2."""
    os.chdir(folder)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    names = {
        "torch": torch, "ms": ms, "model": Blocks(), "criterion": nn.functional.cross_entropy, "x_valid": x,
        "y_valid": y, "loader": [(x, y)] * 3, "folder": f"{folder}/saved",
    }  # fmt: skip
    exec(DDP, names)
    saving = {"dcp": dcp, "get_state_dict": get_state_dict, "set_state_dict": set_state_dict}
    exec(CHECKPOINT, {**names, **saving})
    sharded = {"torch": torch, "ms": ms, "model": Blocks(), "fully_shard": fully_shard}
    exec(FSDP2, sharded)
    for _ in range(3):
        sharded["optimizer"].zero_grad()
        sharded["model"](x).square().mean().backward()
        sharded["optimizer"].step()
    return names["lr"].steps, float(sharded["optimizer"].rates()[0]["global"])


def test_the_snippets_run_on_two_ranks(tmp_path: Path) -> None:
    ms.save_schedule(ms.MLRSNet(4), tmp_path / "schedule.safetensors")
    (steps, rate), other = on_ranks(2, snippets, str(tmp_path))
    assert (steps, rate) == other
    assert steps == 3
    assert rate != pytest.approx(1e-3, rel=1e-6)


def test_the_example_learns_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(ROOT / "examples" / "ddp.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    first, *_, last = (float(line.split()[4]) for line in lines)
    assert len(lines) == 6
    assert last < first
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 60

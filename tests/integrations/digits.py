"""Real digits, a small network, a schedule that notes the losses it reads, and an optimizer's rates as used."""

from typing import Any, ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer

import metastep as ms


def digits(rows: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Images (rows, 64) in 0 ... 1 and labels (rows,)."""
    data = load_digits()
    part = slice(start, start + rows)
    return torch.tensor(data.data[part] / 16, dtype=torch.float32), torch.tensor(data.target[part])


def network(seed: int = 0) -> nn.Module:
    """A perceptron with 10 outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def learned(seed: int = 0) -> ms.MLRSNet:
    """A learned schedule with random weights."""
    torch.manual_seed(seed)
    return ms.MLRSNet(hidden_size=8)


class Noting(ms.Schedule):
    """Reads the loss, notes it, and makes it a rate: a larger loss gives a smaller one."""

    relative: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def init_state(self) -> int:
        """Nothing happened yet."""
        return 0

    def forward(self, loss: float | Tensor, state: int) -> tuple[float, int]:
        """Note the loss."""
        self.losses.append(float(loss))
        return 1 / (1 + float(loss)), state + 1

    def config(self) -> dict[str, Any]:
        """No arguments."""
        return {}


def note_rates(optimizer: Optimizer) -> list[float]:
    """A list to which each step of the optimizer adds the rate that it used."""
    used: list[float] = []
    optimizer.register_step_post_hook(lambda opt, args, kwargs: used.append(float(opt.param_groups[0]["lr"])))
    return used

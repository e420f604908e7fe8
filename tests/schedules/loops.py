"""The smallest optimizers and training loops in which a schedule can be watched."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import metastep as ms


class Null(Optimizer):
    """Moves nothing, and notes the rates with which it would have moved."""

    def __init__(self, groups: Iterable[Any], lr: float | Tensor = 0.1) -> None:
        super().__init__(groups, {"lr": lr})
        self.used: list[list[float]] = []

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the closure, then note the rates."""
        loss = None if closure is None else closure()
        self.used.append([float(group["lr"]) for group in self.param_groups])
        return loss


def null(*rates: float | Tensor) -> Null:
    """One group for each rate."""
    return Null([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.1,)])


def net(seed: int = 0, **options: Any) -> ms.MLRSNet:
    """A float64 schedule with weights from the seed."""
    torch.manual_seed(seed)
    return ms.MLRSNet(**{"hidden_size": 8, **options}).double()


def rates(lr: ms.LearnedLR, optimizer: Optimizer, losses: Iterable[Any]) -> list[float]:
    """The first group's rate in each step, one loss a step."""
    used = []
    for loss in losses:
        lr.observe(loss)
        optimizer.step()
        used.append(lr.get_last_lr()[0])
    return used


class Regression:
    """A small regression with dropout and batch norm; everything from the seed."""

    def __init__(self, make: Callable[[list[nn.Parameter]], Optimizer], seed: int = 0, steps: int = 40) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
        ).double()
        self.inputs, self.targets = torch.randn(steps, 8, 3).double(), torch.randn(steps, 8, 1).double()
        self.optimizer = make(list(self.model.parameters()))

    def loss(self, step: int) -> Tensor:
        """The mean squared error of one batch."""
        return (self.model(self.inputs[step]) - self.targets[step]).square().mean()

    def backward(self, step: int) -> Tensor:
        """Zero the gradients, run the backward pass, return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(step)
        loss.backward()
        return loss

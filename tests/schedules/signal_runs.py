"""Small problems on which schedules that read the optimizer are run."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import metastep as ms
from metastep.core.policy import ActionBounds

OPTIMIZERS: dict[str, Callable[[Iterable], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-5, weight_decay=1e-2),
}


def schedule(**options) -> ms.SignalSchedule:
    """Lands at an update and anneals; its weights hold, but for a little that is random."""
    torch.manual_seed(5)
    return ms.SignalSchedule(**{"bounds": ActionBounds(initial_update=0.7, anneals=True), "hidden": 4, **options})


class Sines:
    """A perceptron that learns a sine, with everything from the seed."""

    def __init__(self, optimizer: str = "sgd-momentum", dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
        self.x = torch.randn(64, 5).to(dtype)
        self.y = self.x.sum(1, keepdim=True).sin()
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())

    def loss(self, rows: slice = slice(None)) -> Tensor:
        return (self.net(self.x[rows]) - self.y[rows]).square().mean()

    def backward(self, rows: slice = slice(None)) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(rows)
        loss.backward()
        return loss

    def values(self) -> list[Tensor]:
        """Parameters and the optimizer's buffers, copied."""
        buffers = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return [tensor.detach().clone() for tensor in (*self.net.parameters(), *buffers)]


def train(run: Sines, lr: ms.LearnedLR, steps: int, spoil: Callable[[int, Sines], None] | None = None) -> list[float]:
    """One rate a step; ``spoil`` may change the gradients before it."""
    used = []
    for step in range(steps):
        loss = run.backward()
        if spoil is not None:
            spoil(step, run)
        lr.observe(loss)
        run.optimizer.step()
        used.append(lr.get_last_lr()[0])
    return used

"""A small regression under MetaLearner, and the optimizers to try it with."""

from collections.abc import Callable
from typing import Any

import torch
from tests.schedules.loops import Regression, net
from torch import nn

import metastep as ms

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw-tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01, dtype=torch.float64)),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "groups": lambda p: torch.optim.SGD([{"params": p[:2]}, {"params": p[2:], "lr": 0.01}], lr=0.05, momentum=0.9),
}


def attached(make: Callable[..., Any], **options: Any) -> tuple[Regression, ms.LearnedLR]:
    run = Regression(make)
    return run, ms.LearnedLR(run.optimizer, net(), **{"initial_loss": 0.5, "num_classes": 3, **options})


def frozen(lr: ms.LearnedLR) -> torch.optim.Optimizer:
    """A meta-optimizer that moves nothing: what is left is the look-ahead."""
    return torch.optim.SGD(lr.schedule.parameters(), lr=0.0)


def learning(run: Regression, lr: ms.LearnedLR, **options: Any) -> ms.MetaLearner:
    return ms.MetaLearner(lr, lambda: run.loss(39), **{"every": 3, **options})


def train(run: Regression, lr: ms.LearnedLR, step: Callable[[], Any], steps: range) -> list[list[float]]:
    used = []
    for k in steps:
        lr.observe(run.backward(k))
        step()
        used.append(lr.get_last_lr())
    return used


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

"""What a run writes down of its learning rates: the rate in use, and the rate of each layer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from metastep.optim.base import HyperOptimizer
from metastep.schedules import LearnedLR

#: About so many times in a run the rates of the layers are written.
POINTS = 60


def applied_rate(optimizer: Optimizer, lr: LearnedLR) -> float:
    """The rate that moved the parameters of the first group in the last step.

    An optimizer that makes its own rate says it (``applied_rate``). Where rates adapt themselves it is the mean over
    the parameters: the schedule's is only what they start from.
    """
    own: Callable[[], float] | None = getattr(optimizer, "applied_rate", None)
    if own is not None:
        return float(own())
    if not isinstance(optimizer, HyperOptimizer):
        return lr.get_last_lr()[0]
    group, rates = optimizer.param_groups[0], optimizer.rates()[0]["combined"]
    total, elements = 0.0, 0
    for rate, parameter in zip(rates.values(), (p for p in group["params"] if p.requires_grad), strict=True):
        total += float(rate.mean()) * parameter.numel()
        elements += parameter.numel()
    return total / max(elements, 1)


def layer_rates(optimizer: Optimizer) -> dict[str, float]:
    """By name, the mean rate of each tensor; empty where rates do not adapt themselves."""
    if not isinstance(optimizer, HyperOptimizer):
        return {}
    with torch.no_grad():
        return {name: float(rate.mean()) for group in optimizer.rates() for name, rate in group["combined"].items()}


def layers_every(total_steps: int, log_every: int) -> int:
    """Steps between two entries of the layers' rates: a multiple of those between two of the loss."""
    return log_every * max(1, total_steps // (POINTS * log_every))


def layers_of(entries: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The `layers` of a record out of a run's log; None where it has none."""
    written = [entry for entry in entries if entry["split"] == "layers"]
    if not written:
        return None
    names = [name for name in written[-1] if name not in ("split", "step")]
    return {
        "names": names,
        "step": [entry["step"] for entry in written],
        "rates": [[entry.get(name) for entry in written] for name in names],
    }

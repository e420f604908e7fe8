"""From an optimizer to what a schedule that watches it reads, and from the brake to a step that is skipped."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.schedules.attaching import split_groups
from metastep.schedules.base import Rate, Reading
from metastep.schedules.linearity import check_linear_in_rate
from metastep.schedules.skipping import SkippedStep
from metastep.schedules.watching import Watch

#: In how many steps at most an optimizer is asked whether it is linear in its rate, while it gives no answer.
_QUESTIONS = 10


class Signals:
    """A LearnedLR's side of a schedule that watches the optimizer.

    Args:
        optimizer: a torch optimizer.
        scope: ``"layer"`` gives every parameter a group of its own.

    Attributes:
        watch: measures the optimizer.
        layers: how many rates there are, 0 for one of the network.
    """

    def __init__(self, optimizer: Optimizer, scope: Literal["network", "layer"]) -> None:
        self.optimizer = optimizer
        if scope == "layer":
            split_groups(optimizer)
        self.layers = len(optimizer.param_groups) if scope == "layer" else 0
        self.watch = Watch(optimizer, layers=scope == "layer")
        self._skipped = SkippedStep(optimizer)
        self._skip: bool | Tensor = False
        self._questions = _QUESTIONS

    def read(self, loss: float | Tensor | None, broken: int | Tensor, device: torch.device) -> Reading:
        """Return what the schedule on this device is to read.

        Args:
            loss: the mean of the window's finite losses; None if none was observed.
            broken: how many were not finite; with any, the loss is read as NaN.
            device: where the schedule is.

        Raises:
            NotLinearInRate: in the first steps, of an optimizer that does not move in proportion to its rate.
            ValueError: if there is a rate for each parameter and parameters have joined.
        """
        if self._questions:
            self._questions = 0 if check_linear_in_rate(self.optimizer) else self._questions - 1
        network, layers = self.watch.measure()
        if layers is not None and len(layers) != self.layers:
            raise ValueError(
                f"optimizer must keep the {self.layers} parameters for which there are rates, it has {len(layers)}; "
                "detach the LearnedLR and make a new one after adding a group."
            )
        return Reading(_loss(loss, broken, device), network.to(device), None if layers is None else layers.to(device))

    def unless_skipped(self, rate: Rate, skip: Tensor | None, *, on_host: bool) -> Rate:
        """Return the rate, 0 in a step that is to be skipped; :meth:`prepare_step` then skips it."""
        if skip is None:
            return rate
        self._skip = bool(skip) if on_host else skip
        rate = torch.where(skip, 0.0, rate)
        return float(rate) if on_host and rate.ndim == 0 else rate

    def prepare_step(self) -> None:
        """Make the step to come an empty one, if it is to be."""
        self._skipped.prepare(self._skip)

    def step_is_over(self, *_: Any) -> None:
        """The optimizer has stepped."""
        self._skipped.over()
        self._skip = False


def _loss(loss: float | Tensor | None, broken: int | Tensor, device: torch.device) -> Tensor | None:
    """A 0-d tensor on the device, made there."""
    if loss is None:
        return None
    if not isinstance(loss, Tensor):
        loss = torch.full((), loss, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    if isinstance(broken, Tensor):
        return torch.where(broken > 0, math.nan, loss)
    return torch.full_like(loss, math.nan) if broken else loss

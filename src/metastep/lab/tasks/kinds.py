"""What the kinds of tasks differ in: the loss, the metric beside it, and how both are summed over a split."""

import math
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

Kind = Literal["classification", "language", "regression", "reconstruction"]
Metric = Literal["accuracy", "perplexity", "r2"]

#: The metric of each kind. Accuracy and r2 are better the higher, perplexity the lower.
METRICS: Final = MappingProxyType[Kind, Metric](
    {"classification": "accuracy", "language": "perplexity", "regression": "r2", "reconstruction": "r2"}
)

#: ``num_classes`` where there are no classes. Targets are standardised, so that the best constant answer has a mean
#: squared error of 1; 1 nat is the cross-entropy of e, that is about 3, equally likely classes, and so a learned
#: schedule reads and scales such a loss as it does that of a task with 3 classes.
CLASSES_OF_STANDARDISED_TARGETS: Final = 3


def mean_loss(kind: Kind, outputs: Tensor, targets: Tensor) -> Tensor:
    """Give the mean cross-entropy in nats, or the mean squared error; 0-d.

    Args:
        kind: Of the task.
        outputs: (..., classes), or of the targets' shape.
        targets: (...) int64 classes, or numbers.
    """
    if kind in ("classification", "language"):
        return cross_entropy(outputs.flatten(0, -2), targets.flatten())
    return mse_loss(outputs, targets)


class Tally(ABC):
    """Sums over the batches of an evaluation; they stay on the device until the result is asked for."""

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch in."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Give "loss" and the metric."""


def tally(kind: Kind) -> Tally:
    """Give an empty tally for tasks of a kind."""
    return _Classes(text=kind == "language") if kind in ("classification", "language") else _Numbers()


class _Classes(Tally):
    def __init__(self, *, text: bool) -> None:
        self._text = text
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self._losses.append(cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum"))
        self._correct.append((outputs.argmax(-1) == targets).sum())
        self._count += targets.numel()

    def scores(self) -> dict[str, float]:
        loss = torch.stack(self._losses).cpu().double().sum() / self._count
        if self._text:
            return {"loss": loss.item(), "perplexity": loss.exp().item()}
        return {"loss": loss.item(), "accuracy": torch.stack(self._correct).sum().item() / self._count}


class _Numbers(Tally):
    """r2 = 1 - sum |y - f|^2 / sum |y - mean y|^2, the mean taken of each output by itself."""

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._examples = self._count = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self._errors.append((outputs - targets).square().sum())
        self._sums.append(targets.sum(0))
        self._squares.append(targets.square().sum())
        self._examples += len(targets)
        self._count += targets.numel()

    def scores(self) -> dict[str, float]:
        errors, squares = (torch.stack(parts).cpu().double().sum().item() for parts in (self._errors, self._squares))
        sums = torch.stack(self._sums).cpu().double().sum(0)
        spread = squares - sums.square().sum().item() / self._examples
        return {"loss": errors / self._count, "r2": 1 - errors / spread if spread > 0 else math.nan}

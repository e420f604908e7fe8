"""What a task needs of its data: four splits, streams of batches; and data that are rows of two tensors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from metastep.lab.tasks.batches import Batch, Batches, EpochBatches
from metastep.lab.tasks.splits import SPLITS, DataOptions

#: ``num_classes`` where there are no classes. Targets are standardised, so that the best constant answer has a mean
#: squared error of 1; 1 nat is the cross-entropy of e, that is about 3, equally likely classes, and so a learned
#: schedule reads and scales such a loss as it does that of a task with 3 classes.
CLASSES_OF_STANDARDISED_TARGETS: Final = 3


@dataclass(frozen=True, kw_only=True)
class TaskData(ABC):
    """Four splits, and streams of batches over them.

    Args:
        num_classes: Number of classes, or the size of the vocabulary; for numbers to predict, which are standardised,
            `CLASSES_OF_STANDARDISED_TARGETS`.
        notes: What was read.
    """

    num_classes: int
    notes: str

    @property
    def network_outputs(self) -> int:
        """Numbers that the network is to give for an example or token."""
        return self.num_classes

    @property
    def augments(self) -> bool:
        """Whether batches can be augmented."""
        return False

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Number of examples (tokens) of every split."""

    def steps_per_epoch(self, split: str, batch_size: int) -> int:
        """Give the number of batches of one pass, the last one possibly smaller."""
        return -(-self.sizes[split] // batch_size)

    @abstractmethod
    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> Batches:
        """Give an endless stream over one split; without `shuffle` in the order of the split."""


@dataclass(frozen=True)
class Examples:
    """Inputs and targets of a split.

    Args:
        inputs: (n, ...).
        targets: (n, ...), float32 numbers or int64 classes.
    """

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class ExampleData(TaskData):
    """Four splits of examples that are rows of two tensors (tables of numbers, sentences, pairs of words).

    Args:
        splits_by_name: The splits.
        num_classes: See `TaskData`.
        notes: What was read.
        outputs: Numbers that the network is to give; None: one per class.
    """

    splits_by_name: Mapping[str, Examples]
    outputs: int | None = None

    @property
    def network_outputs(self) -> int:
        """As told, or one per class."""
        return self.num_classes if self.outputs is None else self.outputs

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of every split."""
        return {name: len(split.targets) for name, split in self.splits_by_name.items()}

    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> "ExampleBatches":
        """Give an endless stream over one split."""
        return ExampleBatches(self, split, batch_size=batch_size, seed=seed, device=device, shuffle=shuffle)


def classified(
    inputs: Tensor, labels: Tensor, rows: Mapping[str, Tensor], *, options: DataOptions, num_classes: int
) -> dict[str, Examples]:
    """Cut examples of classes into splits, the labels of the training split noisy if that is asked.

    Args:
        inputs: (n, ...).
        labels: (n,) int64 classes.
        rows: The positions of every split, each (examples,) int64.
        options: The label noise.
        num_classes: Number of classes.
    """
    splits = {name: Examples(inputs[rows[name]], labels[rows[name]]) for name in SPLITS}
    train = splits["train"]
    splits["train"] = Examples(train.inputs, options.noisy(train.targets, num_classes))
    return splits


class ExampleBatches(EpochBatches):
    """Batches of one split, shuffled anew every epoch."""

    def __init__(
        self, data: ExampleData, split: str, *, batch_size: int, seed: int, device: torch.device, shuffle: bool
    ) -> None:
        chosen = data.splits_by_name[split]
        self._inputs, self._targets = chosen.inputs.to(device), chosen.targets.to(device)
        super().__init__(
            {"split": split}, examples=len(chosen.targets), batch_size=batch_size, seed=seed, shuffle=shuffle
        )

    def _draw(self, order: Tensor, generator: torch.Generator) -> None:
        self._order = order.to(self._inputs.device)

    def _take(self, part: slice) -> Batch:
        rows = self._order[part]
        return Batch(self._inputs[rows], self._targets[rows])

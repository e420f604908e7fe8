"""Examples that are rows of two tensors, such as tables of numbers and pairs of words."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metastep.lab.tasks.batches import Batch
from metastep.lab.tasks.data import Data
from metastep.lab.tasks.epochs import EpochBatches


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
class ExampleData(Data):
    """Four splits of examples, never augmented.

    Args:
        splits_by_name: The splits.
        num_classes: See `Data`.
        notes: What was read.
        outputs: Numbers that the network is to give; None: one per class.
    """

    splits_by_name: Mapping[str, Examples]
    outputs: int | None = None

    @property
    def augments(self) -> bool:
        """Numbers are not augmented."""
        return False

    @property
    def network_outputs(self) -> int:
        """As told, or one per class."""
        return self.num_classes if self.outputs is None else self.outputs

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of every split."""
        return {name: len(split.targets) for name, split in self.splits_by_name.items()}

    def steps_per_epoch(self, split: str, batch_size: int) -> int:
        """Give the number of batches of one pass, the last one possibly smaller."""
        return -(-self.sizes[split] // batch_size)

    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> "ExampleBatches":
        """Give an endless stream over one split."""
        return ExampleBatches(self, split, batch_size=batch_size, seed=seed, device=device, shuffle=shuffle)


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

"""What a task needs of its data, be they images or text."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from metastep.lab.tasks.batches import Batches


@dataclass(frozen=True, kw_only=True)
class Data(ABC):
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
    @abstractmethod
    def augments(self) -> bool:
        """Whether batches can be augmented."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Number of examples (tokens) of every split."""

    @abstractmethod
    def steps_per_epoch(self, split: str, batch_size: int) -> int:
        """Give the number of batches of one pass, the last one possibly smaller."""

    @abstractmethod
    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> Batches:
        """Give an endless stream over one split; without `shuffle` in the order of the split."""

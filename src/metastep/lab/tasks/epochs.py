"""A stream that goes over the examples of a split again and again, in a new order each time."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metastep.lab.tasks.batches import Batch, Batches, check_same_stream


class EpochBatches(Batches):
    """Batches of one split, shuffled anew every epoch, the last of an epoch possibly smaller.

    All random numbers of an epoch are drawn when it begins, from a generator of the stream's own, on the CPU:
    the batches are the same on every device, and the generator's state at the start of the epoch with the
    position in it are all that a continuation needs.

    Args:
        settings: What must be the same for a saved state to fit.
        examples: Size of the split.
        batch_size: Examples a batch.
        seed: Of the stream's own generator.
        shuffle: Whether an epoch has a random order, or else that of the split.
    """

    def __init__(
        self, settings: Mapping[str, Any], *, examples: int, batch_size: int, seed: int, shuffle: bool
    ) -> None:
        self.epoch = 0
        self._position = 0  # of the next batch in the epoch
        self._examples = examples
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._settings = {**settings, "examples": examples, "batch_size": batch_size}
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        n = self._examples
        self._epoch_state = self._generator.get_state()
        order = torch.randperm(n, generator=self._generator) if self._shuffle else torch.arange(n)
        self._draw(order, self._generator)

    @abstractmethod
    def _draw(self, order: Tensor, generator: torch.Generator) -> None:
        """Begin an epoch: keep the order, (examples,) int64, and draw whatever else is random in it."""

    @abstractmethod
    def _take(self, part: slice) -> Batch:
        """Give the examples at these places of the epoch's order."""

    def __next__(self) -> Batch:
        if self._position >= self._examples:
            self.epoch += 1
            self._position = 0
            self._begin_epoch()
        part = slice(self._position, min(self._position + self._batch_size, self._examples))
        self._position = part.stop
        return self._take(part)

    def state_dict(self) -> dict[str, Any]:
        """Give settings, epoch, position, and the generator as it was when the epoch began."""
        return {
            **self._settings,
            "epoch": self.epoch,
            "position": self._position,
            "generator": self._epoch_state.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        check_same_stream(state, self._settings)
        self._generator.set_state(state["generator"].cpu())
        self.epoch, self._position = state["epoch"], state["position"]
        self._begin_epoch()

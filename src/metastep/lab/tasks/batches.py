"""What a task hands to a training loop: batches, and endless streams of them that can be resumed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


class Carry:
    """The hidden state that enters one chunk of text, and the one that left it.

    A loss reads `entering` and writes `leaving`: asking twice for the loss of a batch (a look-ahead, a line
    search) starts twice from the same state, and only the *next* chunk of the stream enters with `leaving`.
    """

    __slots__ = ("entering", "leaving")

    def __init__(self, entering: tuple[Tensor, ...] | None = None) -> None:
        self.entering = entering  # None: zeros, the beginning of the text
        self.leaving: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs and targets of one step.

    Args:
        inputs: (batch, channels, height, width) float32 images, channels last in memory, or (batch, time)
            int64 tokens, or (batch, columns) float32 numbers, or (batch,) int64 words.
        targets: (batch,) int64 classes or words, or (batch, time) int64 tokens: the inputs one position later, or
            (batch, outputs) float32 numbers.
        carry: hidden state that enters this batch, for recurrent language models.
    """

    inputs: Tensor
    targets: Tensor
    carry: Carry | None = None


class Batches(ABC):
    """An endless stream of batches that owns its random numbers and can be resumed bit for bit.

    Save the state between steps: after the loss of the last batch was taken, before the next one is drawn.

    Example:
        >>> from metastep.lab.tasks import load_task
        >>> stream = load_task("digits/mlp").batches("train", seed=1)
        >>> batch, saved = next(stream), stream.state_dict()
        >>> continued = next(stream)
        >>> stream.load_state_dict(saved)
        >>> bool((next(stream).inputs == continued.inputs).all())
        True
    """

    epoch: int  # whole passes over the split that lie behind the next batch

    def __iter__(self) -> Self:
        return self

    @abstractmethod
    def __next__(self) -> Batch: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Give what a bit-exact continuation needs, as plain numbers and tensors."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: If the state belongs to a stream over other data or with another batch size.
        """


def check_same_stream(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a saved state whose fixed settings differ from this stream's."""
    for name, value in own.items():
        if name not in saved:
            raise ValueError(f"state must hold {name!r}, got {sorted(saved)}; pass what state_dict() gave.")
        if saved[name] != value:
            raise ValueError(
                f"state must come from a stream with {name} {value!r}, got {saved[name]!r}; "
                "make the stream as it was when it was saved."
            )


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
        self.examples = examples
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._settings = {**settings, "examples": examples, "batch_size": batch_size}
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        n = self.examples
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
        if self._position >= self.examples:
            self.epoch += 1
            self._position = 0
            self._begin_epoch()
        part = slice(self._position, min(self._position + self.batch_size, self.examples))
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

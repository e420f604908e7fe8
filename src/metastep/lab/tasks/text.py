"""Text in memory as tokens, and the stream of contiguous chunks over one split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metastep.lab.tasks.batches import Batch, Batches, Carry, check_same_stream
from metastep.lab.tasks.data import TaskData


@dataclass(frozen=True, kw_only=True)
class TextData(TaskData):
    """Four splits of a text.

    Args:
        tokens_by_split: (tokens,) int64 for every split.
        chunk: Tokens of a stretch through which gradients flow.
        recurrent: Whether the network carries a state from chunk to chunk.
    """

    tokens_by_split: Mapping[str, Tensor]
    chunk: int
    recurrent: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Number of tokens of every split."""
        return {name: len(tokens) for name, tokens in self.tokens_by_split.items()}

    def steps_per_epoch(self, split: str, batch_size: int) -> int:
        """Give the number of chunks of one pass, the last one possibly shorter."""
        return -(-(self.stretches(split, batch_size).shape[1] - 1) // self.chunk)

    def stretches(self, split: str, batch_size: int) -> Tensor:
        """Cut a split into `batch_size` stretches of equal length, a remainder dropped.

        Returns:
            (batch_size, length) int64.

        Raises:
            ValueError: If a stretch would have no token to predict.
        """
        tokens = self.tokens_by_split[split]
        length = len(tokens) // batch_size
        if length < 2:
            raise ValueError(
                f"batch_size must be <= {len(tokens) // 2} for the {len(tokens)} tokens of {split}, got {batch_size}."
            )
        return tokens[: batch_size * length].view(batch_size, length)

    def stream(
        self, split: str, *, batch_size: int, seed: int, device: torch.device, augment: bool, shuffle: bool
    ) -> "TextBatches":
        """Give an endless stream over one split, always in the order of the text."""
        return TextBatches(self, split, batch_size=batch_size, device=device)


class TextBatches(Batches):
    """Contiguous chunks of several stretches of a text read side by side, over and over.

    Chunk k holds tokens k*chunk .. (k+1)*chunk - 1 of each stretch, with the tokens one further as targets.
    The state that a recurrent network leaves after a chunk enters the next one; at the end of the text it is
    forgotten.
    """

    def __init__(self, data: TextData, split: str, *, batch_size: int, device: torch.device) -> None:
        self.epoch = 0
        self._position = 0  # of the next chunk's first token
        self._chunk = data.chunk
        self._settings = {"split": split, "tokens": data.sizes[split], "batch_size": batch_size}
        self._stretches = data.stretches(split, batch_size).to(device)
        self._device = device
        self._recurrent = data.recurrent
        self._carry = Carry()  # of the batch given last

    def __next__(self) -> Batch:
        if self._position >= self._stretches.shape[1] - 1:
            self.epoch += 1
            self._position = 0
            self._carry = Carry()
        end = min(self._position + self._chunk, self._stretches.shape[1] - 1)
        inputs = self._stretches[:, self._position : end]
        targets = self._stretches[:, self._position + 1 : end + 1]
        self._position = end
        if not self._recurrent:
            return Batch(inputs, targets)
        self._carry = Carry(self._carry.leaving)
        return Batch(inputs, targets, self._carry)

    def state_dict(self) -> dict[str, Any]:
        """Give settings, epoch, position, and the hidden state left for the next chunk."""
        leaving = self._carry.leaving or ()
        return {
            **self._settings,
            "epoch": self.epoch,
            "position": self._position,
            "carry": [part.clone() for part in leaving],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        check_same_stream(state, self._settings)
        self.epoch, self._position = state["epoch"], state["position"]
        self._carry = Carry()
        if state["carry"]:
            self._carry.leaving = tuple(part.to(self._device) for part in state["carry"])

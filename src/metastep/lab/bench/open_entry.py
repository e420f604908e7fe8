"""The entry of a training curve that is not yet written: the losses since the last one."""

from collections.abc import Sequence

import torch
from torch import Tensor


class OpenEntry:
    """Adds losses one after the other, in float64, so that where a run was interrupted cannot be seen in their mean.

    Args:
        total: sum of the losses so far, of an entry that is gone on with.
        count: how many they are.
    """

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count = total, count

    def add(self, losses: Sequence[Tensor]) -> None:
        """Take losses, () each and on one device, which is waited for once for all of them."""
        for loss in torch.stack(list(losses)).tolist() if losses else ():
            self.total += loss
        self.count += len(losses)

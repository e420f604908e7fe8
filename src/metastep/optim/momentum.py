"""The direction of gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from metastep.core.levels import accumulator
from metastep.optim.direction import Buffers, Direction

if TYPE_CHECKING:
    from torch import Tensor

BUFFER, GRADIENT = "momentum_buffer", "previous_gradient"


@dataclass(frozen=True, kw_only=True)
class Momentum(Direction):
    """v <- momentum v + (1 - dampening) g (first v <- g); u = v, g + momentum v (Nesterov), g without momentum."""

    momentum: float
    dampening: float
    nesterov: bool

    @property
    def buffers(self) -> tuple[str, ...]:
        """The momentum buffer, and the gradient where v alone does not tell u."""
        if self.momentum == 0:
            return (GRADIENT,)
        return (BUFFER, GRADIENT) if self.nesterov else (BUFFER,)

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        if self.momentum != 0:
            torch._foreach_mul_(buffers[BUFFER], self.momentum)
            if self.dampening == 0:
                torch._foreach_add_(buffers[BUFFER], gradients)
            else:
                share = (1 - self.dampening * (counts > 1).to(accumulator(counts.device))).unbind()
                torch._foreach_add_(buffers[BUFFER], torch._foreach_mul(gradients, share))
        if GRADIENT in buffers:
            torch._foreach_copy_(buffers[GRADIENT], gradients)

    def recover(self, buffers: Buffers, counts: Tensor) -> list[Tensor]:
        """The direction u of the last advance."""
        del counts
        if self.momentum == 0:
            return buffers[GRADIENT]
        if self.nesterov:
            return list(torch._foreach_add(buffers[GRADIENT], buffers[BUFFER], alpha=self.momentum))
        return buffers[BUFFER]

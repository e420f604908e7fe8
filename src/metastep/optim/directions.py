"""Which way: the direction u of each base optimizer, as a function of buffers that do not depend on any rate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from metastep.core.levels import accumulator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

Buffers = dict[str, list["Tensor"]]  # per state key, one tensor per parameter, of its shape

# State keys, torch.optim's own names where it has such a buffer.
MOMENTUM = "momentum_buffer"
FIRST_MOMENT, SECOND_MOMENT, LARGEST_MOMENT = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
MEAN_SQUARE, MEAN = "square_avg", "grad_avg"
SUM_OF_SQUARES = "sum"
LAST_GRADIENT, LAST_DIRECTION, DISPLACEMENT = "previous_gradient", "previous_direction", "displacement"


@dataclass(frozen=True, kw_only=True)
class Direction(ABC):
    """The direction u of theta <- theta - alpha (.) u.

    Because u_t can be read off the buffers after step t, the next step recovers it before it advances them, and no copy
    of it is kept beside them.

    Args:
        maximize: Climb instead of descend: every gradient changes its sign first.
        weight_decay: Coupled decay, added to the gradient as weight_decay times theta.
        decoupled_decay: Decay that the rate multiplies beside the direction: theta <- theta - alpha (u + decay theta).
        taken: Whether the parameters have already moved along u at the rate `group["lr"]` when the second pass begins.
    """

    maximize: bool = False
    weight_decay: float = 0.0
    decoupled_decay: float = 0.0
    taken: bool = False

    @property
    @abstractmethod
    def buffers(self) -> tuple[str, ...]:
        """State keys of the buffers."""

    def start(self, key: str) -> float:
        """What a buffer holds before the first step."""
        del key
        return 0.0

    @abstractmethod
    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients, with sign and coupled decay applied; counts (T,) include this step."""

    @abstractmethod
    def recover(self, buffers: Buffers, counts: Tensor) -> Iterable[Tensor]:
        """Return u of the last advance; zero for a tensor that has seen none (count 0)."""


@dataclass(frozen=True, kw_only=True)
class MomentumDirection(Direction):
    """v <- momentum v + (1 - dampening) g (first v <- g); u = v, g + momentum v (Nesterov), g without momentum."""

    momentum: float
    dampening: float
    nesterov: bool

    @property
    def buffers(self) -> tuple[str, ...]:
        """The momentum buffer, and the gradient where v alone does not tell u."""
        if self.momentum == 0:
            return (LAST_GRADIENT,)
        return (MOMENTUM, LAST_GRADIENT) if self.nesterov else (MOMENTUM,)

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        if self.momentum != 0:
            torch._foreach_mul_(buffers[MOMENTUM], self.momentum)
            if self.dampening == 0:
                torch._foreach_add_(buffers[MOMENTUM], gradients)
            else:
                share = (1 - self.dampening * (counts > 1).to(accumulator(counts.device))).unbind()
                torch._foreach_add_(buffers[MOMENTUM], torch._foreach_mul(gradients, share))
        if LAST_GRADIENT in buffers:
            torch._foreach_copy_(buffers[LAST_GRADIENT], gradients)

    def recover(self, buffers: Buffers, counts: Tensor) -> list[Tensor]:
        """The direction u of the last advance."""
        del counts
        if self.momentum == 0:
            return buffers[LAST_GRADIENT]
        if self.nesterov:
            return list(torch._foreach_add(buffers[LAST_GRADIENT], buffers[MOMENTUM], alpha=self.momentum))
        return buffers[MOMENTUM]


@dataclass(frozen=True, kw_only=True)
class AdamDirection(Direction):
    """u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) with moving averages m of g and v of g^2."""

    beta1: float
    beta2: float
    eps: float
    amsgrad: bool

    @property
    def buffers(self) -> tuple[str, ...]:
        """Both moments, and the largest second one where AMSGrad asks for it."""
        return (FIRST_MOMENT, SECOND_MOMENT, LARGEST_MOMENT) if self.amsgrad else (FIRST_MOMENT, SECOND_MOMENT)

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        del counts
        torch._foreach_lerp_(buffers[FIRST_MOMENT], gradients, 1 - self.beta1)
        torch._foreach_mul_(buffers[SECOND_MOMENT], self.beta2)
        torch._foreach_addcmul_(buffers[SECOND_MOMENT], gradients, gradients, 1 - self.beta2)
        if self.amsgrad:
            torch._foreach_maximum_(buffers[LARGEST_MOMENT], buffers[SECOND_MOMENT])

    def recover(self, buffers: Buffers, counts: Tensor) -> Iterator[Tensor]:
        """The direction u of the last advance, tensor by tensor: one temporary serves after the other."""
        corrections = (correction.unbind() for correction in self.corrections(counts))
        second = buffers[LARGEST_MOMENT if self.amsgrad else SECOND_MOMENT]
        for m, v, by_first, by_root in zip(buffers[FIRST_MOMENT], second, *corrections, strict=True):
            u = (m / by_first).div_(v.sqrt().div_(by_root).add_(self.eps))
            yield u.to(m.dtype)  # which a 0-d tensor lost to the corrections

    def corrections(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Bias corrections 1 - b1^t and sqrt(1 - b2^t), (T,); those of t = 1 before the first step, where m is 0."""
        t = counts.clamp(min=1).to(accumulator(counts.device))
        return 1 - self.beta1**t, (1 - self.beta2**t).sqrt()


@dataclass(frozen=True, kw_only=True)
class RMSpropDirection(Direction):
    """u = g / (sqrt(s [- m^2]) + eps), or b <- momentum b + that; s and m are moving averages of g^2 and g."""

    smoothing: float
    eps: float
    momentum: float
    centered: bool

    @property
    def base_buffers(self) -> tuple[str, ...]:
        """Buffers that torch.optim.RMSprop has too."""
        return (MEAN_SQUARE, *((MOMENTUM,) if self.momentum > 0 else ()), *((MEAN,) if self.centered else ()))

    @property
    def buffers(self) -> tuple[str, ...]:
        """torch's, and the direction itself where there is no momentum buffer that is it."""
        return self.base_buffers if self.momentum > 0 else (*self.base_buffers, LAST_DIRECTION)

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        del counts
        torch._foreach_mul_(buffers[MEAN_SQUARE], self.smoothing)
        torch._foreach_addcmul_(buffers[MEAN_SQUARE], gradients, gradients, 1 - self.smoothing)
        if self.centered:
            torch._foreach_lerp_(buffers[MEAN], gradients, 1 - self.smoothing)
            below = torch._foreach_addcmul(buffers[MEAN_SQUARE], buffers[MEAN], buffers[MEAN], -1)
            torch._foreach_sqrt_(below)
        else:
            below = torch._foreach_sqrt(buffers[MEAN_SQUARE])
        torch._foreach_add_(below, self.eps)
        if self.momentum > 0:
            torch._foreach_mul_(buffers[MOMENTUM], self.momentum)
            torch._foreach_addcdiv_(buffers[MOMENTUM], gradients, below)
        else:
            torch._foreach_copy_(buffers[LAST_DIRECTION], torch._foreach_div(gradients, below))

    def recover(self, buffers: Buffers, counts: Tensor) -> list[Tensor]:
        """The direction u of the last advance."""
        del counts
        return buffers[MOMENTUM if self.momentum > 0 else LAST_DIRECTION]


@dataclass(frozen=True, kw_only=True)
class AdagradDirection(Direction):
    """u = g / ((sqrt(S) + eps) (1 + (t - 1) lr_decay)) with S the sum of all g^2."""

    lr_decay: float
    initial_accumulator_value: float
    eps: float

    @property
    def buffers(self) -> tuple[str, ...]:
        """The sum of squares and the last direction."""
        return (SUM_OF_SQUARES, LAST_DIRECTION)

    def start(self, key: str) -> float:
        """The sum starts at its initial value."""
        return self.initial_accumulator_value if key == SUM_OF_SQUARES else 0.0

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        torch._foreach_addcmul_(buffers[SUM_OF_SQUARES], gradients, gradients, 1)
        below = torch._foreach_sqrt(buffers[SUM_OF_SQUARES])
        torch._foreach_add_(below, self.eps)
        if self.lr_decay != 0:
            torch._foreach_mul_(below, (1 + (counts - 1).to(accumulator(counts.device)) * self.lr_decay).unbind())
        torch._foreach_copy_(buffers[LAST_DIRECTION], torch._foreach_div(gradients, below))

    def recover(self, buffers: Buffers, counts: Tensor) -> list[Tensor]:
        """The direction u of the last advance."""
        del counts
        return buffers[LAST_DIRECTION]


@dataclass(frozen=True, kw_only=True)
class Displacement(Direction):
    """u = (theta before - theta after) / lr of a step that another optimizer has taken at the rate lr."""

    taken: bool = True

    @property
    def buffers(self) -> tuple[str, ...]:
        """The last displacement per unit of rate."""
        return (DISPLACEMENT,)

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Nothing: the base optimizer takes in the gradients itself."""

    def recover(self, buffers: Buffers, counts: Tensor) -> list[Tensor]:
        """The last displacement per unit of rate."""
        del counts
        return buffers[DISPLACEMENT]

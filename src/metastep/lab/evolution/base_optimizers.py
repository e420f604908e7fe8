r"""Base optimizers for networks that train side by side: each network with its own rate, all of them in one tensor.

The parameters of P networks are the rows of one tensor, (P, D); a step is a handful of operations on it. The updates
are those of torch.optim, to rounding:

.. math::
    \text{SGD:}\quad v &\leftarrow \mu v + g + \lambda \theta, \qquad u = v \\
    \text{AdamW:}\quad u &= \hat m / (\sqrt{\hat s} + \epsilon) + \lambda \theta, \qquad
    \theta \leftarrow \theta - \alpha u
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

Base = Literal["sgd", "adamw"]


class BaseOptimizer(ABC):
    """A direction for every network from its gradient, with the state that the direction needs.

    Attributes:
        direction: u of the last step that was taken, (P, D): the displacement over the rate.
    """

    direction: Tensor

    @abstractmethod
    def step(self, parameters: Tensor, gradient: Tensor, rate: Tensor, taken: Tensor) -> None:
        """Move the parameters in place.

        Args:
            parameters: (P, D).
            gradient: (P, D), finite; it may be overwritten.
            rate: (P,); or (P, C), of each of C pieces of equal length into which the row is cut.
            taken: (P,) 1.0, or 0.0 for a network that skips this step: nothing of it changes.
        """

    @abstractmethod
    def state(self) -> list[Tensor]:
        """The tensors that a resumed run needs; they are written in place."""

    def _apply(self, parameters: Tensor, rate: Tensor, taken: Tensor) -> None:
        """Take the step along the direction."""
        if rate.ndim == 1:
            parameters.addcmul_(self.direction, (rate * taken)[:, None], value=-1)
        else:
            rate = (rate * taken[:, None])[..., None]
            parameters.view(*rate.shape[:2], -1).addcmul_(self.direction.view(*rate.shape[:2], -1), rate, value=-1)


class SGD(BaseOptimizer):
    """Stochastic gradient descent with momentum and (coupled) weight decay, as ``torch.optim.SGD``."""

    def __init__(self, like: Tensor, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.direction = torch.zeros_like(like)

    def step(self, parameters: Tensor, gradient: Tensor, rate: Tensor, taken: Tensor) -> None:
        """Move the parameters in place."""
        if self.weight_decay:
            gradient.add_(parameters, alpha=self.weight_decay)
        keep = 1 + (self.momentum - 1) * taken
        self.direction.mul_(keep[:, None]).addcmul_(gradient, taken[:, None])
        self._apply(parameters, rate, taken)

    def state(self) -> list[Tensor]:
        """The momentum, which is the direction."""
        return [self.direction]


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``; each network counts the steps it took."""

    def __init__(
        self, like: Tensor, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.direction, self.mean, self.square = (torch.zeros_like(like) for _ in range(3))
        self.steps = torch.zeros_like(like[:, 0])

    def step(self, parameters: Tensor, gradient: Tensor, rate: Tensor, taken: Tensor) -> None:
        """Move the parameters in place."""
        (slow, slower), row = self.betas, taken[:, None]
        self.steps += taken
        self.mean.lerp_(gradient, (1 - slow) * row)
        self.square.lerp_(gradient.square_(), (1 - slower) * row)
        steps = self.steps.clamp(min=1)
        correction = (1 - slower**steps).sqrt()[:, None]
        torch.sqrt(self.square, out=self.direction).div_(correction).add_(self.eps)
        torch.div(self.mean, self.direction, out=self.direction)
        self.direction.div_((1 - slow**steps)[:, None]).add_(parameters, alpha=self.weight_decay)
        self._apply(parameters, rate, taken)

    def state(self) -> list[Tensor]:
        """The direction, both moments and the counts of steps."""
        return [self.direction, self.mean, self.square, self.steps]


def make_base_optimizer(base: Base, like: Tensor, *, momentum: float, weight_decay: float) -> BaseOptimizer:
    """The base optimizer of a task: ``momentum`` is SGD's (AdamW has its own betas).

    Raises:
        ValueError: for another base.
    """
    if base == "sgd":
        return SGD(like, momentum=momentum, weight_decay=weight_decay)
    if base == "adamw":
        return AdamW(like, weight_decay=weight_decay)
    raise ValueError(f"base must be 'sgd' or 'adamw', got {base!r}.")

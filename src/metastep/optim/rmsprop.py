"""RMSprop, centered and with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from metastep.optim.base import HyperOptimizer
from metastep.optim.direction import Buffers, Direction
from metastep.optim.namesake import start_buffer, start_step
from metastep.optim.options import Group, HyperOptions, flag, number

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

SQUARE, MEAN, BUFFER, DIRECTION = "square_avg", "grad_avg", "momentum_buffer", "previous_direction"


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
        return (SQUARE, *((BUFFER,) if self.momentum > 0 else ()), *((MEAN,) if self.centered else ()))

    @property
    def buffers(self) -> tuple[str, ...]:
        """torch's, and the direction itself where there is no momentum buffer that is it."""
        return self.base_buffers if self.momentum > 0 else (*self.base_buffers, DIRECTION)

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        del counts
        torch._foreach_mul_(buffers[SQUARE], self.smoothing)
        torch._foreach_addcmul_(buffers[SQUARE], gradients, gradients, 1 - self.smoothing)
        if self.centered:
            torch._foreach_lerp_(buffers[MEAN], gradients, 1 - self.smoothing)
            below = torch._foreach_addcmul(buffers[SQUARE], buffers[MEAN], buffers[MEAN], -1)
            torch._foreach_sqrt_(below)
        else:
            below = torch._foreach_sqrt(buffers[SQUARE])
        torch._foreach_add_(below, self.eps)
        if self.momentum > 0:
            torch._foreach_mul_(buffers[BUFFER], self.momentum)
            torch._foreach_addcdiv_(buffers[BUFFER], gradients, below)
        else:
            torch._foreach_copy_(buffers[DIRECTION], torch._foreach_div(gradients, below))

    def recover(self, buffers: Buffers, counts: Tensor) -> list[Tensor]:
        """The direction u of the last advance."""
        del counts
        return buffers[BUFFER if self.momentum > 0 else DIRECTION]


class HyperRMSprop(HyperOptimizer):
    r"""RMSprop whose learning rates adapt themselves by hypergradient descent.

    .. math:: u_t = g_t / (\sqrt{s_t} + \epsilon), \quad \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t

    Without momentum it keeps the last direction, one tensor per parameter more than torch's.

    Args:
        params: Parameters, named parameters or groups of either.
        lr: Initial rate of every level, >= 0; a scheduler multiplies all of them.
        alpha: Smoothing of the moving averages, in [0, 1].
        eps: Added to the root, >= 0.
        weight_decay: Coupled decay per step, >= 0.
        momentum: Momentum on the scaled gradient, >= 0.
        centered: Subtract the square of the mean gradient.
        capturable: As in torch; while rates adapt the counters are on the device anyway.
        foreach: As in torch while the rates stand still.
        maximize: Climb instead of descend.
        differentiable: As in torch; needs hyper_lr=0.
        hyper: Options of every hypergradient optimizer, keyword-only; see `docs/optimizers.md`.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: arXiv 1703.04782 and 2008.07277, applied to RMSprop's direction (our extension).

    Example:
        >>> import torch
        >>> from metastep.optim import HyperRMSprop
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = HyperRMSprop(model.parameters(), lr=1e-3, centered=True)
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **hyper: Unpack[HyperOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, hyper)

    def check_arguments(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        number("alpha", group["alpha"], high=1.0)
        for name in ("eps", "weight_decay", "momentum"):
            number(name, group[name])
        flag("centered", group["centered"])

    def direction(self, group: Group) -> RMSpropDirection:
        """RMSprop as the group's settings ask for."""
        return RMSpropDirection(
            maximize=group["maximize"],
            weight_decay=float(group["weight_decay"]),
            smoothing=float(group["alpha"]),
            eps=float(group["eps"]),
            momentum=float(group["momentum"]),
            centered=group["centered"],
        )

    def plain_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.RMSprop."""
        return ("step", *self.direction(group).base_buffers)

    def plain_step(self, group: Group, parameters: list[Tensor]) -> None:
        """torch.optim.RMSprop's own kernels."""
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if any(g.is_sparse for g in gradients):
            raise RuntimeError("HyperRMSprop does not support sparse gradients; use sparse=False in the embedding.")
        keys = self.direction(group).base_buffers
        for p, state in zip(parameters, states, strict=True):
            if "step" not in state:
                state["step"] = start_step(p, group)
                state.update({key: start_buffer(p) for key in keys})
        rmsprop(
            parameters,
            gradients,
            [state[SQUARE] for state in states],
            [state[MEAN] for state in states] if group["centered"] else [],
            [state[BUFFER] for state in states] if group["momentum"] > 0 else [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
            capturable=group["capturable"],
            has_complex=any(p.is_complex() for p in parameters),
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            centered=group["centered"],
        )

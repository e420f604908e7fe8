"""Adagrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad

from metastep.core.levels import accumulator
from metastep.optim.base import HyperOptimizer
from metastep.optim.direction import Buffers, Direction
from metastep.optim.namesake import start_buffer, start_step
from metastep.optim.options import Group, HyperOptions, number

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

SUM, DIRECTION = "sum", "previous_direction"


@dataclass(frozen=True, kw_only=True)
class AdagradDirection(Direction):
    """u = g / ((sqrt(S) + eps) (1 + (t - 1) lr_decay)) with S the sum of all g^2."""

    lr_decay: float
    initial_accumulator_value: float
    eps: float

    @property
    def buffers(self) -> tuple[str, ...]:
        """The sum of squares and the last direction."""
        return (SUM, DIRECTION)

    def start(self, key: str) -> float:
        """The sum starts at its initial value."""
        return self.initial_accumulator_value if key == SUM else 0.0

    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients."""
        torch._foreach_addcmul_(buffers[SUM], gradients, gradients, 1)
        below = torch._foreach_sqrt(buffers[SUM])
        torch._foreach_add_(below, self.eps)
        if self.lr_decay != 0:
            torch._foreach_mul_(below, (1 + (counts - 1).to(accumulator(counts.device)) * self.lr_decay).unbind())
        torch._foreach_copy_(buffers[DIRECTION], torch._foreach_div(gradients, below))

    def recover(self, buffers: Buffers, counts: Tensor) -> list[Tensor]:
        """The direction u of the last advance."""
        del counts
        return buffers[DIRECTION]


class HyperAdagrad(HyperOptimizer):
    r"""Adagrad whose learning rates adapt themselves by hypergradient descent.

    .. math:: u_t = \frac{g_t}{(\sqrt{S_t} + \epsilon)(1 + (t-1)\eta)}, \quad
              \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t

    It keeps the last direction, one tensor per parameter more than torch's.

    Args:
        params: Parameters, named parameters or groups of either.
        lr: Initial rate of every level, >= 0; a scheduler multiplies all of them.
        lr_decay: :math:`\eta` >= 0 per step.
        weight_decay: Coupled decay per step, >= 0.
        initial_accumulator_value: Where the sum of squares starts, >= 0.
        eps: Added to the root, >= 0.
        foreach: As in torch while the rates stand still.
        maximize: Climb instead of descend.
        differentiable: As in torch; needs hyper_lr=0.
        fused: As in torch while the rates stand still.
        hyper: Options of every hypergradient optimizer, keyword-only; see `docs/optimizers.md`.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: arXiv 1703.04782 and 2008.07277, applied to Adagrad's direction (our extension).

    Example:
        >>> import torch
        >>> from metastep.optim import HyperAdagrad
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = HyperAdagrad(model.parameters(), lr=1e-2)
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **hyper: Unpack[HyperOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, hyper)

    def check_arguments(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        for name in ("lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            number(name, group[name])

    def direction(self, group: Group) -> AdagradDirection:
        """Adagrad as the group's settings ask for."""
        return AdagradDirection(
            maximize=group["maximize"],
            weight_decay=float(group["weight_decay"]),
            lr_decay=float(group["lr_decay"]),
            initial_accumulator_value=float(group["initial_accumulator_value"]),
            eps=float(group["eps"]),
        )

    def plain_keys(self, group: Group) -> tuple[str, ...]:
        """State keys of torch.optim.Adagrad."""
        del group
        return ("step", SUM)

    def plain_step(self, group: Group, parameters: list[Tensor]) -> None:
        """torch.optim.Adagrad's own kernels."""
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p, state in zip(parameters, states, strict=True):
            if "step" not in state:
                state["step"] = start_step(p, group)
                state[SUM] = start_buffer(p, group["initial_accumulator_value"])
        adagrad(
            parameters,
            gradients,
            [state[SUM] for state in states],
            [state["step"] for state in states],
            fused=group["fused"],
            has_sparse_grad=any(g.is_sparse for g in gradients),
            foreach=group["foreach"],
            differentiable=group["differentiable"],
            has_complex=any(p.is_complex() for p in parameters),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

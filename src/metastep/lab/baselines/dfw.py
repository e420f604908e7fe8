"""DFW: the rate at which a proximal step on the linearised loss would reach zero, up to a largest one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import APPLIED, LossStepOptimizer, Work, positive
from metastep.optim.options import Group, number

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

BUFFER = "momentum_buffer"


class DFW(LossStepOptimizer):
    r"""Deep Frank-Wolfe: gradient descent at the optimal step size of a proximal step, in closed form.

    .. math:: \gamma_t = \mathrm{clip}\Bigl(\frac{L_t - \eta \langle g_t, r_t \rangle}
        {\eta \lVert g_t \rVert^2 + \epsilon}, 0, 1\Bigr), \qquad
        z_t = \mu z_{t-1} - \eta \gamma_t (g_t + r_t), \qquad
        \theta_t = \theta_{t-1} - \eta (r_t + \gamma_t g_t) + \mu z_t

    with :math:`r = \lambda \theta`. Far from a loss of 0 it is SGD at the rate lr; near it the rate falls by itself.

    Args:
        params: Parameters or groups; loss and inner products are those of all groups together.
        lr: eta, the largest rate, >= 0. A group at 0 stands still.
        momentum: mu, in [0, 1).
        weight_decay: lambda, >= 0.
        eps: > 0.

    Raises:
        ValueError: For an argument out of its range, and at ``step`` without a loss.

    Source: arXiv 1811.07591, and its authors' code.
    *Differs from the paper:* the loss is whatever is given, not only the multi-class hinge loss for which the step size
    is optimal. A step with a loss or gradient that is not finite is not taken, and counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = DFW([w], lr=1.0, momentum=0.0)
        >>> loss = w.square().sum()
        >>> loss.backward()
        >>> _ = optimizer.step(lambda: loss)
        >>> round(w.item(), 4), round(optimizer.applied_rate(), 4)  # 9 / 36
        (1.5, 0.25)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps})

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        number("momentum", group["momentum"], high=1.0, open_high=True)
        number("weight_decay", group["weight_decay"])
        positive("eps", group["eps"])

    def move(self, works: list[Work], loss: float, square: float) -> None:
        """Find the step size, and move."""
        above, below = loss, self.param_groups[0]["eps"]
        for group, parameters, gradients in works:
            rate = float(group["lr"])
            below += rate * float(inner_product(gradients, gradients))
            if group["weight_decay"]:
                above -= rate * group["weight_decay"] * float(inner_product(gradients, parameters))
        size = min(max(above / below, 0.0), 1.0)
        for group, parameters, gradients in works:
            rate, momentum = float(group["lr"]), group["momentum"]
            group[APPLIED] = rate * size
            if rate == 0:
                continue
            decay = torch._foreach_mul(parameters, group["weight_decay"])
            if momentum:
                for parameter in parameters:
                    self.state[parameter].setdefault(BUFFER, torch.zeros_like(parameter))
                buffers = [self.state[parameter][BUFFER] for parameter in parameters]
                torch._foreach_mul_(buffers, momentum)
                torch._foreach_add_(buffers, torch._foreach_add(gradients, decay), alpha=-group[APPLIED])
            torch._foreach_add_(parameters, decay, alpha=-rate)
            torch._foreach_add_(parameters, gradients, alpha=-group[APPLIED])
            if momentum:
                torch._foreach_add_(parameters, buffers, alpha=momentum)

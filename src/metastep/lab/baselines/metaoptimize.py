"""MetaOptimize: AdamW at a rate that follows its derivative of the losses to come, without Hessians."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    AdaptiveStepOptimizer,
    adam_moments,
    all_finite,
    check_betas,
    positive,
    recomputed,
)
from metastep.lab.baselines.armijo import MULTIPLE
from metastep.optim.options import Group, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim.optimizer import ParamsT

#: Of a tensor: how it depends on the logarithm of the rate, with the sign changed. Of the first group: Lion's mean.
TRACE, MEAN = "trace", "meta_mean"


class MetaOptimize(AdaptiveStepOptimizer):
    r"""MetaOptimize, Hessian-free, for one rate: AdamW is the base, Lion moves the logarithm of the rate.

    .. math:: \theta \leftarrow \theta - \alpha_t (u_t + \lambda \theta), \qquad
        s_t = \langle h, g_t \rangle, \qquad
        h \leftarrow \gamma (1 - \alpha_t \lambda) h + \alpha_t \frac{g_t}{\sqrt{\hat v_t} + \epsilon}

    .. math:: m \leftarrow b \, m + (1 - b) s_t, \qquad
        \log \alpha_{t+1} = \log \alpha_t + \eta \, \mathrm{sign}(c \, m + (1 - c) s_t)

    with AdamW's direction u.

    Args:
        params: Parameters or groups; there is one rate, and the groups' rates keep the ratios of their lr.
        lr: alpha at the start, >= 0. A schedule on top multiplies the rate. A group at 0 stands still.
        hyper_lr: eta, by which the logarithm of the rate moves in a step, >= 0.
        gamma: Discount of the losses to come, in [0, 1].
        betas: Decays of AdamW's moments, each in [0, 1).
        meta_betas: Lion's decay b and share c, each in [0, 1).
        eps: > 0.
        weight_decay: lambda, >= 0.

    Raises:
        ValueError: For an argument out of its range.

    Source: arXiv 2402.02342, and its authors' ``MetaOptimize_AdamW_Lion_hg``, whose values are the defaults.
    *Differs from the code:* a step with a gradient that is not finite is not taken, and counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = MetaOptimize([w], hyper_lr=0.1)
        >>> for _ in range(80):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     _ = optimizer.step()
        >>> abs(w.item()) < 1.0, optimizer.applied_rate() > 1e-3
        (True, True)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        hyper_lr: float = 1e-3,
        gamma: float = 0.9999,
        betas: tuple[float, float] = (0.9, 0.999),
        meta_betas: tuple[float, float] = (0.99, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "hyper_lr": hyper_lr, "gamma": gamma, "betas": betas, "meta_betas": meta_betas, "eps": eps,
            "weight_decay": weight_decay, MULTIPLE: 1.0, MEAN: 0.0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        number("hyper_lr", group["hyper_lr"])
        number("gamma", group["gamma"], high=1.0)
        check_betas(group)
        for place, beta in enumerate(group["meta_betas"]):
            number(f"meta_betas[{place}]", beta, high=1.0, open_high=True)
        positive("eps", group["eps"])
        number("weight_decay", group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move, measure the derivative, and move the rate.

        Args:
            closure: Recomputes the loss and the gradients, once; run with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        loss = recomputed(closure)
        works = self.moving()
        if not works:
            return loss
        for _, parameters, _ in works:
            for p in parameters:
                self.state[p].setdefault(TRACE, torch.zeros_like(p))
        traces = [[self.state[p][TRACE] for p in parameters] for _, parameters, _ in works]
        signal = math.fsum(float(inner_product(h, g)) for h, (_, _, g) in zip(traces, works, strict=True))
        squares = math.fsum(float(inner_product(g, g)) for _, _, g in works)
        if not all_finite(signal, squares):
            self.reject()
            return loss
        first = self.param_groups[0]
        for h, (group, parameters, gradients) in zip(traces, works, strict=True):
            rate = group[APPLIED] = float(group["lr"]) * first[MULTIPLE]
            means, roots = adam_moments([self.state[p] for p in parameters], gradients, group["betas"], group["eps"])
            left = 1 - rate * group["weight_decay"]
            torch._foreach_mul_(parameters, left)
            torch._foreach_addcdiv_(parameters, means, roots, value=-rate)
            torch._foreach_mul_(h, group["gamma"] * left)
            torch._foreach_addcdiv_(h, gradients, roots, value=rate)
        decay, share = first["meta_betas"]
        first[MEAN] = decay * first[MEAN] + (1 - decay) * signal
        towards = share * first[MEAN] + (1 - share) * signal
        first[MULTIPLE] *= math.exp(first["hyper_lr"] * ((towards > 0) - (towards < 0)))
        return loss

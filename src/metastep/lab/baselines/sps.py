"""Stochastic Polyak steps: the rate at which the linearised loss of the batch would reach its lower bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    LossStepOptimizer,
    Work,
    all_finite,
    count,
    positive,
    weighted_steps,
)
from metastep.optim.options import Group, choice

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

VARIANTS = ("smooth_iter", "max", "plain")

#: The smoothed cap, as a multiple of the group's lr.
CAP = "cap"


class SPS(LossStepOptimizer):
    r"""SPS: gradient descent with the stochastic Polyak rate.

    .. math:: \hat\eta_t = \frac{L_t - f^*}{c \lVert g_t \rVert^2 + \epsilon}, \qquad
        \theta_t = \theta_{t-1} - \eta_t g_t

    where :math:`\eta_t = \min(2^{1/n} \eta_{t-1}, \hat\eta_t)` ("smooth_iter", from :math:`\eta_0` = lr),
    :math:`\min(\text{lr}, \hat\eta_t)` ("max") or :math:`\text{lr} \cdot \hat\eta_t` ("plain").

    Args:
        params: Parameters or groups; loss and squared gradient are those of all groups together.
        lr: See above; >= 0. A scheduler that lowers it lowers the cap of "smooth_iter" and "max", and scales "plain".
        variant: "smooth_iter", "max" or "plain".
        c: Divides the rate, > 0.
        f_star: The lowest loss that a batch could have; a finite number.
        growth: By what the cap of "smooth_iter" may grow in an epoch, >= 1.
        steps_per_epoch: n, >= 1.
        eps: Added to the squared gradient, > 0.

    Raises:
        ValueError: For an argument out of its range, and at ``step`` without a loss.

    Source: arXiv 2002.10542, and its authors' code for "smooth_iter".
    *Differs from the code:* a rate of 0 (a loss at ``f_star``) is not remembered as the last one, from which it would
    never grow again. A step with a loss or gradient that is not finite is not taken, and counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = SPS([w], variant="max")
        >>> loss = w.square().sum()
        >>> loss.backward()
        >>> _ = optimizer.step(lambda: loss)
        >>> round(w.item(), 4), round(optimizer.applied_rate(), 4)  # min(1, 9 / (0.5 * 36))
        (0.0, 0.5)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        variant: str = "smooth_iter",
        c: float = 0.5,
        f_star: float = 0.0,
        growth: float = 2.0,
        steps_per_epoch: int = 256,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr, "variant": variant, "c": c, "f_star": f_star, "growth": growth,
            "steps_per_epoch": steps_per_epoch, "eps": eps, CAP: 1.0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        choice("variant", group["variant"], VARIANTS)
        positive("c", group["c"])
        if not all_finite(float(group["f_star"])):
            raise ValueError(f"f_star must be finite, got {group['f_star']!r}; 0 is a bound of most losses.")
        check_growth(group)
        positive("eps", group["eps"])

    def move(self, works: list[Work], loss: float, square: float) -> None:
        """Measure the rate, and move."""
        for group, parameters, gradients in works:
            group[APPLIED] = self._rate(group, loss, square)
            weighted_steps(parameters, gradients, group[APPLIED])

    def _rate(self, group: Group, loss: float, square: float) -> float:
        lr = float(group["lr"])
        polyak: float = max(loss - group["f_star"], 0.0) / (group["c"] * square + group["eps"])
        if group["variant"] == "plain":
            return lr * polyak
        if group["variant"] == "max":
            return min(lr, polyak)
        rate = min(grown(group, group[CAP]) * lr, polyak)
        if rate > 0:
            group[CAP] = rate / lr
        return rate


def check_growth(group: Group) -> None:
    """Refuse a growth below 1, and epochs without steps."""
    if positive("growth", group["growth"]) < 1:
        raise ValueError(f"growth must be >= 1, got {group['growth']!r}; use 1 for a rate that never grows.")
    count("steps_per_epoch", group["steps_per_epoch"])


def grown(group: Group, multiple: float) -> float:
    """``growth ** (1 / steps_per_epoch)`` times as much."""
    return float(group["growth"] ** (1.0 / group["steps_per_epoch"]) * multiple)

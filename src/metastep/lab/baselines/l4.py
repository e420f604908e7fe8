"""L4: the rate at which the linearised loss would fall by a share of the gap to the lowest loss seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    FIRST,
    LossStepOptimizer,
    Work,
    adam_moments,
    check_betas,
    corrected_means,
    count,
    positive,
    weighted_steps,
)
from metastep.optim.options import Group, choice, number

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

LOWEST = "lowest_loss"

#: Keeps the quotient finite where gradient and direction vanish.
_LEAST = 1e-12


class L4(LossStepOptimizer):
    r"""L4: steps that aim at a share of the gap between the loss and the lowest loss expected.

    .. math:: \eta_t = \alpha \frac{L_t - 0.9 L_{\min}}{\langle \bar g_t, v_t \rangle + 10^{-12}}, \qquad
        \theta_t = \theta_{t-1} - \eta_t v_t

    with the bias-corrected mean :math:`\bar g` of the gradients, and :math:`v = \bar g` or Adam's direction. Before
    each step :math:`L_{\min} \leftarrow \min(L_{\min}, L_t)` (first :math:`0.75 L_1`), after it
    :math:`L_{\min} \leftarrow (1 + 1/1000) L_{\min}`.

    Args:
        params: Parameters or groups; gap, lowest loss and inner product are those of all groups together.
        lr: The share alpha, of each group; >= 0.
        direction: "momentum" or "adam".
        momentum: Decay of the gradients' mean for "momentum", in [0, 1).
        betas: Decays of both moments for "adam", each in [0, 1); the first is also that of the mean.
        eps: Added to the root of the second moment for "adam", > 0.
        floor: Share of the lowest loss that is aimed at, in [0, 1).
        start: The lowest loss expected at the first step, as a share of the first loss, in (0, 1].
        forget: Steps >= 1 in which the lowest loss would grow by a factor of about e.

    Raises:
        ValueError: For an argument out of its range, and at ``step`` without a loss.

    Source: arXiv 1802.05074, algorithm 1.
    *Differs from the paper:* a step with a loss or gradient that is not finite is not taken, and counted in
    ``rejected``. Losses must not be negative: the rate is 0 where the gap is. ``step`` reads two numbers back.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = L4([w])
        >>> for _ in range(200):
        ...     loss = w.square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(lambda: loss)
        >>> w.item() < 1.0, optimizer.applied_rate() > 0
        (True, True)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.15,
        *,
        direction: str = "momentum",
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        floor: float = 0.9,
        start: float = 0.75,
        forget: int = 1000,
    ) -> None:
        defaults = {
            "lr": lr, "direction": direction, "momentum": momentum, "betas": betas, "eps": eps,
            "floor": floor, "start": start, "forget": forget, LOWEST: None,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        choice("direction", group["direction"], ("momentum", "adam"))
        number("momentum", group["momentum"], high=1.0, open_high=True)
        check_betas(group)
        positive("eps", group["eps"])
        number("floor", group["floor"], high=1.0, open_high=True)
        positive("start", group["start"], high=1.0)
        count("forget", group["forget"])

    def move(self, works: list[Work], loss: float, square: float) -> None:
        """Take the gradients in, measure the rate, and move."""
        first = self.param_groups[0]
        lowest = first["start"] * loss if first[LOWEST] is None else min(first[LOWEST], loss)
        pairs = [self._directions(*work) for work in works]
        means, directions = ([t for pair in pairs for t in pair[side]] for side in (0, 1))
        gap = max(loss - first["floor"] * lowest, 0.0)
        unit = gap / (max(float(inner_product(means, directions)), 0.0) + _LEAST)
        for (group, parameters, _), (_, own) in zip(works, pairs, strict=True):
            group[APPLIED] = float(group["lr"]) * unit
            weighted_steps(parameters, own, group[APPLIED])
        first[LOWEST] = lowest * (1.0 + 1.0 / first["forget"])

    def _directions(
        self, group: Group, parameters: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The bias-corrected means of the gradients, and the directions; the moments are advanced."""
        states = [self.state[p] for p in parameters]
        if group["direction"] == "adam":
            means, roots = adam_moments(states, gradients, group["betas"], group["eps"])
            return means, list(torch._foreach_div(means, roots))
        means = corrected_means(states, gradients, FIRST, group["momentum"])
        return means, means

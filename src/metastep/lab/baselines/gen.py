"""GeN: the rate at which a parabola through three losses along AdamW's direction has its minimum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    AdaptiveStepOptimizer,
    adam_directions,
    all_finite,
    check_betas,
    count,
    host_number,
    positive,
)
from metastep.lab.baselines.armijo import MULTIPLE, measuring
from metastep.optim.options import Group, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim.optimizer import ParamsT

#: Steps taken, of the first group.
TAKEN = "taken"


class GeN(AdaptiveStepOptimizer):
    r"""Generalized Newton over AdamW: a rate that follows the minimum of the loss along the direction.

    Every few steps the losses of the batch at :math:`\theta`, :math:`\theta - \eta u` and :math:`\theta + \eta u` are
    fitted by a parabola, and the rate moves a tenth of the way to its minimum, which counts as twice as large and half
    as large at most:

    .. math:: \eta^* = \frac{\eta}{2} \cdot \frac{L_- - L_+}{L_+ + L_- - 2 L_0}, \qquad
        \eta \leftarrow 0.9 \, \eta + 0.1 \, \mathrm{clip}(\eta^*, \eta / 2, 2 \eta)

    where :math:`L_\pm` is the loss at :math:`\theta \mp \eta u`. It stays if the parabola is not convex or rises.

    Args:
        params: Parameters or groups; there is one rate, and the groups' rates keep the ratios of their lr.
        lr: Where the rate starts, >= 0. A schedule on top multiplies the rate.
        betas: Decays of AdamW's moments, each in [0, 1).
        eps: Added to the root of the second moment, > 0.
        weight_decay: Of AdamW, >= 0; a part of u.
        every: Steps between two fits, >= 1.
        smoothing: What is kept of the rate at a fit, in [0, 1).
        model: Whose buffers the trials must not change; None: those of every module that runs.

    Raises:
        ValueError: For an argument out of its range, and at ``step`` without a closure.

    Source: arXiv 2407.02772, with the values of its authors' package ``gen-optim``.
    *Differs from the code:* the losses are those of the step's own batch instead of the next one. Trials leave batch
    norm's statistics and the random-number streams alone. A step with a loss or gradient that is not finite is not
    taken, and counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = GeN([w], lr=1e-2, every=1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     _ = optimizer.step(lambda: w.square().sum())
        >>> abs(w.item()) < 1.0, optimizer.applied_rate() > 1e-2
        (True, True)
    """

    step_style = "closure"
    _model: nn.Module | None = None  # a copy or a pickle is without it

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        every: int = 4,
        smoothing: float = 0.9,
        model: nn.Module | None = None,
    ) -> None:
        self._model = model
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "every": every, "smoothing": smoothing,
            MULTIPLE: 1.0, TAKEN: 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        check_betas(group)
        positive("eps", group["eps"])
        number("weight_decay", group["weight_decay"])
        count("every", group["every"])
        number("smoothing", group["smoothing"], high=1.0, open_high=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Fit the parabola if it is time, and move.

        Args:
            closure: Computes the loss of the batch whose gradients are in ``grad``, without backward; called once at
                the parameters as they are, and twice for a fit.

        Returns:
            The loss before the step.
        """
        loss_here = measuring(self, self._model, closure)
        loss = loss_here()  # a LearnedLR writes the rate while this runs
        works = self.moving()
        gradients = [g for _, _, part in works for g in part]
        if not works:
            return loss
        before = host_number(loss)
        if not all_finite(before, float(inner_product(gradients, gradients))):
            self.reject()
            return loss
        first, moves = self.param_groups[0], []
        for group, parameters, own in works:
            directions = adam_directions([self.state[p] for p in parameters], own, group["betas"], group["eps"])
            if group["weight_decay"]:
                torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
            moves.append((group, parameters, [p.clone() for p in parameters], directions))

        def at(multiple: float) -> None:
            for group, parameters, starts, directions in moves:
                torch._foreach_copy_(parameters, starts)
                torch._foreach_add_(parameters, directions, alpha=-float(group["lr"]) * multiple)

        first[TAKEN] += 1
        if first[TAKEN] % first["every"] == 0:
            losses = []
            try:
                for sign in (1, -1):
                    at(sign * first[MULTIPLE])
                    losses.append(host_number(loss_here()))
            except BaseException:
                at(0.0)
                raise
            first[MULTIPLE] *= first["smoothing"] + (1 - first["smoothing"]) * _stretch(before, *losses)
        at(first[MULTIPLE])
        for group, _, _, _ in moves:
            group[APPLIED] = float(group["lr"]) * first[MULTIPLE]
        return loss


def _stretch(here: float, ahead: float, behind: float) -> float:
    """Where the parabola has its minimum, in units of the rate, within [1/2, 2]; 1 if it says nothing."""
    curvature, slope = ahead + behind - 2 * here, (behind - ahead) / 2
    if not (all_finite(curvature, slope) and curvature > 0 and slope > 0):
        return 1.0
    return min(max(slope / curvature, 0.5), 2.0)

"""SALSA: a smoothed line search finds the rate, then SASA's test lowers it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from metastep.core.inner import inner_product
from metastep.lab.baselines.adaptive_step import StepStyle, all_finite, count, host_number
from metastep.lab.baselines.armijo import MULTIPLE, TrialSteps, measuring
from metastep.lab.baselines.sasa import DROPS, SASA, STEPS, t_cumulative
from metastep.optim.options import Group, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim.optimizer import ParamsT

#: What the first group remembers: whether the search is over, and the loss before each step until then.
SWITCHED, LOSSES, LOSS_COUNT = "switched", "losses", "loss_count"

#: The first rate tried over the last one, by what a rate that is too large is multiplied, how many are tried.
_UP, _DOWN, _TRIALS = 2.0, 0.5, 2


class SALSA(SASA):
    r"""SASA from a rate that a line search finds, smoothed over steps.

    Until the losses no longer fall, each step tries :math:`\eta = 2 \alpha`, then half, and then half of it, until

    .. math:: F(\theta - \eta \tilde g) \le F(\theta) - c \, \eta \lVert \tilde g \rVert^2

    on the step's batch, with :math:`F = L + \frac{\lambda}{2} \lVert \theta \rVert^2`, and
    :math:`\alpha \leftarrow (1 - \gamma) \alpha + \gamma \eta` with :math:`\gamma = n^{-1/2}`. At SASA's tests the last
    ``1 / keep`` of the F so far are fitted by a line; the search ends when its slope is not significantly negative, or
    when SASA finds stationarity. From then on it is :class:`SASA`.

    Args:
        params: Parameters or groups; there is one search and one test, and the rates keep the ratios of the groups' lr.
        lr: alpha at the start, >= 0. A scheduler's changes multiply what is found.
        c: The share of the linear decrease that is asked for, in [0, 0.5).
        steps_per_epoch: n, >= 1.
        model: Whose buffers the trials must not change; None: those of every module that runs.
        warmup: Steps before the first test, >= 0.
        options: Of :class:`SASA`.

    Raises:
        ValueError: For an argument out of its range, and at ``step`` without a closure.

    Source: arXiv 2002.10597, and its authors' code.
    *Differs from the code:* the batch is evaluated in the mode that the closure has, and the slope is looked at when
    SASA tests. Trials leave batch norm's statistics and the random-number streams alone. A step with a loss or gradient
    that is not finite is not taken, and counted in ``rejected``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = SALSA([w], lr=1e-3, steps_per_epoch=4)
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     _ = optimizer.step(lambda: w.square().sum())
        >>> abs(w.item()) < 0.5, optimizer.applied_rate() > 0.1
        (True, True)
    """

    step_style: ClassVar[StepStyle] = "closure"
    _model: nn.Module | None = None  # a copy or a pickle is without it

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        c: float = 0.05,
        steps_per_epoch: int = 256,
        model: nn.Module | None = None,
        warmup: int = 0,
        **options: Any,
    ) -> None:
        self._model = model
        super().__init__(params, lr, warmup=warmup, **options)
        own = {"c": c, "steps_per_epoch": steps_per_epoch, MULTIPLE: 1.0, SWITCHED: False, LOSSES: None, LOSS_COUNT: 0}
        self.defaults.update(own)
        for group in self.param_groups:
            group.update({**own, **group})
            self.check(group)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        if "c" in group:  # not while SASA makes the groups
            number("c", group["c"], high=0.5, open_high=True)
            count("steps_per_epoch", group["steps_per_epoch"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Search for the rate, if that is not over; then take a step of SASA.

        Args:
            closure: Computes the loss of the batch whose gradients are in ``grad``, without backward; called once at
                the parameters as they are, and once for every trial.

        Returns:
            The loss before the step.
        """
        loss_here = measuring(self, self._model, closure)
        loss = loss_here()  # a LearnedLR writes the rate while this runs
        works, first = self.with_gradients(), self.param_groups[0]
        gradients = [g for _, _, part in works for g in part]
        if not works or all(float(group["lr"]) == 0 for group, _, _ in works):
            return loss
        before = host_number(loss)
        if not all_finite(before, float(inner_product(gradients, gradients))):
            self.reject()
            return loss
        if not first[SWITCHED]:
            self._search(lambda: host_number(loss_here()), before)
        drops = first[DROPS]
        self._advance()
        first[SWITCHED] = first[SWITCHED] or first[DROPS] > drops
        return loss

    def _search(self, loss_here: Callable[[], float], before: float) -> None:
        """Move the rate towards the one found on this batch, and end the search where the losses no longer fall."""
        first, works = self.param_groups[0], []
        for group, parameters, gradients in self.with_gradients():
            decayed = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            works.append((group, parameters, decayed))
        before += self._penalty()
        trials, multiple = TrialSteps(first, works, before), _UP * first[MULTIPLE]
        try:
            for _ in range(_TRIALS):
                trials.place(multiple)
                after = loss_here() + self._penalty()
                if after <= before - first["c"] * multiple * trials.slope:
                    break
                multiple *= _DOWN
        finally:
            trials.place(0.0)
        gamma = first["steps_per_epoch"] ** -0.5
        first[MULTIPLE] = (1 - gamma) * first[MULTIPLE] + gamma * multiple
        self._keep(torch.tensor(before, dtype=torch.float64), LOSSES, LOSS_COUNT)
        if (first[STEPS] + 1) % first["test_every"] == 0:
            kept = self._kept(LOSSES, LOSS_COUNT)
            first[SWITCHED] = len(kept) > first["min_samples"] and not falls(kept, first["significance"])

    def _penalty(self) -> float:
        """The part of F that is the weight decay's."""
        squares = [
            group["weight_decay"] / 2 * float(inner_product(parameters, parameters))
            for group, parameters, _ in self.with_gradients()
            if group["weight_decay"]
        ]
        return math.fsum(squares)

    def _rate(self, group: Group) -> float:
        return super()._rate(group) * float(self.param_groups[0][MULTIPLE])


def falls(samples: Tensor, significance: float) -> bool:
    """Whether the slope of a line through the samples is negative, by a one-sided t-test.

    Args:
        samples: (n,) float64, n >= 3, in the order of time.
        significance: of the test, in (0, 1).
    """
    n = len(samples)
    times = torch.arange(n, dtype=samples.dtype) - (n - 1) / 2
    centred = samples - samples.mean()
    scale = float(times.norm() * centred.norm())
    correlation = float(times @ centred) / scale if scale > 0 else 0.0
    t = correlation * math.sqrt((n - 2) / max(1 - correlation**2, 1e-20))
    return t_cumulative(t, n - 2) < significance

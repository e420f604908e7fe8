"""A line search on the batch of the step: the largest rate tried at which the loss falls as it should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metastep.core.inner import inner_product
from metastep.core.isolation import RngStates, isolated_modules, isolated_rng, rng_states, set_rng_states
from metastep.lab.baselines.adaptive_step import (
    APPLIED,
    AdaptiveStepOptimizer,
    Work,
    all_finite,
    count,
    evaluated,
    host_number,
    positive,
)
from metastep.lab.baselines.sps import check_growth, grown
from metastep.optim.options import Group, choice, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer
    from torch.optim.optimizer import ParamsT

CONDITIONS = ("armijo", "goldstein")

#: The rate found last as a multiple of the groups' lr, and how many rates were tried for it.
MULTIPLE, TRIALS = "multiple", "trials"

#: The first group's rate where no trial was accepted, the smallest rate "goldstein" tries, and the gradient norm below
#: which nothing moves.
_FALLBACK, _SMALLEST, _STILL = 1e-6, 1e-8, 1e-8


class Armijo(AdaptiveStepOptimizer):
    r"""Gradient descent with a line search for the rate of every step, on the batch of that step.

    The rate starts from :math:`2^{1/n} \eta_{t-1}` (at first lr) and is multiplied by 0.9 until

    .. math:: L(\theta_{t-1} - \eta g) \le L(\theta_{t-1}) - c \, \eta \lVert g \rVert^2,

    at most ``max_trials`` times; then the step is taken at 1e-6. "goldstein" asks besides that
    :math:`L(\theta_{t-1} - \eta g) \ge L(\theta_{t-1}) - (1 - c) \eta \lVert g \rVert^2`, multiplies by ``expand`` (up
    to ``max_lr``) where only the first holds, and takes the last rate tried that decreased the loss enough.

    Trials leave no trace: batch norm's statistics and the random-number streams are as before the step, and every trial
    of a step draws the same random numbers. :meth:`begin` makes these the ones of the gradient's own forward pass.

    Args:
        params: Parameters or groups; there is one search, and the groups' rates keep the ratios of their lr.
        lr: Where the first search starts, >= 0.
        condition: "armijo" or "goldstein".
        c: The share of the linear decrease that is asked for, in (0, 1); below 0.5 for "goldstein".
        backtrack: Multiplies a rate that is too large, in (0, 1).
        growth: By what the rate may grow in an epoch, >= 1.
        steps_per_epoch: n, >= 1.
        max_trials: Rates tried in a step, >= 1.
        expand: Multiplies a rate that is too small ("goldstein"), > 1.
        max_lr: The largest rate that "goldstein" expands to, > 0.
        model: Whose buffers the trials must not change; None: those of every module that runs.

    Raises:
        ValueError: For an argument out of its range, and at ``step`` without a closure.

    Source: arXiv 1905.09997, and its authors' code (reset option 1).
    *Differs from the code:* the gradients are those in ``grad``. A step with a loss or gradient that is not finite is
    not taken and counted in ``rejected``; a trial whose loss is not finite counts as too far.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = Armijo([w], lr=4.0)
        >>> w.square().sum().backward()
        >>> loss = optimizer.step(lambda: w.square().sum())
        >>> loss.item(), optimizer.applied_rate() < 0.9, w.square().item() < 9
        (9.0, True, True)
    """

    step_style = "closure"

    # a copy or a pickle is without them
    _model: nn.Module | None = None
    _streams: RngStates | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        condition: str = "armijo",
        c: float = 0.1,
        backtrack: float = 0.9,
        growth: float = 2.0,
        steps_per_epoch: int = 256,
        max_trials: int = 100,
        expand: float = 2.0,
        max_lr: float = 10.0,
        model: nn.Module | None = None,
    ) -> None:
        self._model = model
        defaults = {
            "lr": lr, "condition": condition, "c": c, "backtrack": backtrack, "growth": growth,
            "steps_per_epoch": steps_per_epoch, "max_trials": max_trials, "expand": expand, "max_lr": max_lr,
            MULTIPLE: 1.0, TRIALS: 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Refuse arguments that are out of range."""
        super().check(group)
        choice("condition", group["condition"], CONDITIONS)
        most = 0.5 if group["condition"] == "goldstein" else 1.0
        if number("c", group["c"], high=most, open_high=True) == 0:
            raise ValueError(f"c must be in (0, {most:g}), got {group['c']!r}; the authors use 0.1.")
        if number("backtrack", group["backtrack"], high=1.0, open_high=True) == 0:
            raise ValueError(f"backtrack must be in (0, 1), got {group['backtrack']!r}; the authors use 0.9.")
        check_growth(group)
        count("max_trials", group["max_trials"])
        if positive("expand", group["expand"]) <= 1:
            raise ValueError(f"expand must be > 1, got {group['expand']!r}; the authors use 2.")
        positive("max_lr", group["max_lr"])

    def begin(self) -> None:
        """Call it before the forward pass of the gradients: the trials then draw the random numbers that it draws."""
        self._streams = rng_states(p for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Search for the rate, and move.

        Args:
            closure: Computes the loss of the batch whose gradients are in ``grad``, without backward; called once at
                the parameters as they are, and once for every trial.

        Returns:
            The loss before the step.
        """
        streams, self._streams = self._streams, None
        loss_here = measuring(self, self._model, closure, streams)
        loss = loss_here()  # a LearnedLR writes the rate while this runs
        works = self.with_gradients()
        gradients = [g for _, _, part in works for g in part]
        if not works or all(float(group["lr"]) == 0 for group, _, _ in works):
            return loss
        before, square = host_number(loss), float(inner_product(gradients, gradients))
        if not all_finite(before, square):
            self.reject()
        elif square >= _STILL**2:
            TrialSteps(self.param_groups[0], works, before).run(lambda: host_number(loss_here()))
        else:
            for group, _, _ in works:
                group[APPLIED] = 0.0
        return loss


class TrialSteps:
    """The trials of one step: from where the parameters are, which stay at the rate found.

    Args:
        first: The group whose arguments count.
        works: Groups with parameters and gradients.
        before: The loss where they are.
    """

    def __init__(self, first: Group, works: list[Work], before: float) -> None:
        self.first, self.works, self.before = first, works, before
        self.starts = [[p.clone() for p in parameters] for _, parameters, _ in works]
        self.rates = [float(group["lr"]) for group, _, _ in works]
        self.reference = next(rate for rate in self.rates if rate > 0)
        pairs = zip(self.rates, works, strict=True)
        self.slope = sum(rate * float(inner_product(gs, gs)) for rate, (_, _, gs) in pairs)

    def place(self, multiple: float) -> None:
        """Move the parameters to this multiple of the groups' rates, from where they started."""
        for (_, parameters, gradients), starts, rate in zip(self.works, self.starts, self.rates, strict=True):
            torch._foreach_copy_(parameters, starts)
            torch._foreach_add_(parameters, gradients, alpha=-rate * multiple)

    def run(self, loss_here: Callable[[], float]) -> None:
        """Find the rate and stay there; back to the start if the loss cannot be computed."""
        try:
            multiple, trials = self.found(loss_here)
            self.place(multiple)
        except BaseException:
            self.place(0.0)
            raise
        self.first[MULTIPLE], self.first[TRIALS] = multiple, trials
        for (group, _, _), rate in zip(self.works, self.rates, strict=True):
            group[APPLIED] = rate * multiple

    def found(self, loss_here: Callable[[], float]) -> tuple[float, int]:
        """The multiple to use, and how many were tried."""
        first, accepted = self.first, None
        multiple = grown(first, first[MULTIPLE])
        goldstein, share = first["condition"] == "goldstein", first["c"]
        most = first["max_lr"] / self.reference
        for trial in range(1, first["max_trials"] + 1):
            self.place(multiple)
            after = loss_here()
            fell = after <= self.before - share * multiple * self.slope
            if fell:
                accepted = multiple
                far = after >= self.before - (1 - share) * multiple * self.slope
                if not goldstein or far or multiple >= most:
                    return multiple, trial
                multiple = min(multiple * first["expand"], most)
            else:
                least = _SMALLEST / self.reference if goldstein else 0.0
                multiple = max(multiple * first["backtrack"], least)
        return (_FALLBACK / self.reference if accepted is None else accepted), first["max_trials"]


def measuring(
    optimizer: Optimizer, model: nn.Module | None, closure: Callable[[], Any] | None, streams: RngStates | None = None
) -> Callable[[], Any]:
    """A function that gives the loss of the step's batch at the parameters as they are.

    It needs no graph, and leaves no trace in the buffers of ``model`` and in torch's random streams.

    Args:
        optimizer: whose parameters are moved between the calls.
        model: whose buffers stay; None: there are none.
        closure: computes the loss.
        streams: which random numbers each call sees; None: the next ones.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    without_graph = None if closure is None else torch.no_grad()(closure)

    def loss_here() -> Any:
        with isolated_rng(parameters), isolated_modules(model):
            if streams is not None:
                set_rng_states(streams)
            return evaluated("closure", without_graph, "the loss of the step's batch")

    return loss_here

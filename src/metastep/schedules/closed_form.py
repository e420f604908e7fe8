"""Closed forms: a factor on the base rate that depends on the step alone, and the one that waits for a plateau.

Steps count from 0: ``factor_at(0)`` is the factor of the very first optimizer step, which is the rate a torch
scheduler gives before its first ``step()``. Everything is a Python float; no tensor is made.
"""

import inspect
import math
import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

from metastep.schedules.base import Loss, Rate, Schedule, between, one_of, require, whole

Strategy = Literal["cos", "linear"]

#: What to do instead of a gamma above 1.
_GROWTH = "for a rate that grows use OneCycle or WarmupStableDecay"
#: What to give where torch takes ``eta_min``.
_FRACTION = "give a fraction of the base rate, not a rate"
#: Why a factor stays at or below 1.
_PEAK = "the base rate is the peak, the ends lie below it"


class ClosedForm(Schedule):
    """Multiplies each parameter group's own initial rate, or a measured one, by a factor of the step alone.

        rate_t = initial rate of the group * factor_at(t),        t = 0, 1, 2, ...

    The state is the number of steps done, an int: a resumed run continues as if it had never stopped.
    The arguments can be read as attributes and are fixed at construction. A subclass writes :meth:`factor_at`; its
    ``name`` is its own in kebab case and its ``summary`` the first line of its docstring, unless it says otherwise.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
        if "summary" not in vars(cls):
            cls.summary = (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")

    @abstractmethod
    def factor_at(self, step: int) -> float:
        """The factor of optimizer step ``step``; the first one is step 0."""

    def init_state(self) -> int:
        """No step is done: 0."""
        return 0

    def forward(self, loss: Loss, state: int) -> tuple[float, int]:
        """Return ``(factor_at(state), state + 1)``; the loss is not looked at."""
        return self.factor_at(state), state + 1

    def query(self, loss: float, state: int) -> tuple[float, int]:
        """:meth:`forward` without the cost of a module call."""
        return self.factor_at(state), state + 1

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ and name in inspect.signature(type(self)).parameters:
            raise AttributeError(f"{name} is fixed at construction; build a new {type(self).__name__}.")
        super().__setattr__(name, value)


class OverHorizon(ClosedForm):
    """A closed form over ``total_steps`` steps, 0 ... total_steps - 1; afterwards the last factor stays."""

    total_steps: int | None

    def __init__(self, total_steps: int | None) -> None:
        super().__init__()
        self.total_steps = None if total_steps is None else whole("total_steps", total_steps, 1)

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """At its defaults over the whole run."""
        return cls(total_steps=total_steps)

    @abstractmethod
    def factor_within(self, step: int, total_steps: int) -> float:
        """The factor of ``step``, 0 <= step < total_steps."""

    def factor_at(self, step: int) -> float:
        """The factor of optimizer step ``step``; from step ``total_steps`` on, that of the last step.

        Raises:
            ValueError: if no horizon was given.
        """
        if self.total_steps is None:
            raise ValueError(
                f"total_steps must be known before {type(self).__name__} is used, got None; "
                "give it at construction, or use with_total_steps(n)."
            )
        return self.factor_within(min(step, self.total_steps - 1), self.total_steps)

    def with_total_steps(self, total_steps: int) -> Self:
        """A copy over ``total_steps`` steps; this schedule itself if it has a horizon already."""
        if self.total_steps is not None:
            return self
        return self.extended(total_steps)

    def extended(self, total_steps: int) -> Self:
        """A copy over ``total_steps`` steps, whatever the horizon was."""
        return type(self)(**{**self.config(), "total_steps": total_steps})


def anneal(strategy: Strategy, start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1, along half a cosine wave or a straight line."""
    if strategy == "cos":
        return end + (start - end) / 2.0 * (math.cos(math.pi * progress) + 1.0)
    return (end - start) * progress + start


class Constant(ClosedForm):
    """Keeps the base rate: factor_t = 1.

    Example:
        >>> Constant().factor_at(10)
        1.0
    """

    summary = "the base rate throughout"

    def factor_at(self, step: int) -> float:
        """1, at every step."""
        return 1.0


class MultiStep(ClosedForm):
    """Multiplies the rate by ``gamma`` at every milestone.

        factor_t = gamma ** (number of milestones <= t)

    Args:
        milestones: steps, increasing, each >= 1.
        gamma: in (0, 1].

    Raises:
        ValueError: for an argument out of its range.

    Source: ``torch.optim.lr_scheduler.MultiStepLR``, the same values.

    Example:
        >>> drops = MultiStep([100, 150], gamma=0.5)
        >>> [drops.factor_at(step) for step in (0, 99, 100, 150)]
        [1.0, 1.0, 0.5, 0.25]
    """

    name = "multistep"
    summary = "a tenth after 1/2 and after 3/4 of the run"

    def __init__(self, milestones: Sequence[int], gamma: float = 0.1) -> None:
        super().__init__()
        self.milestones = tuple(whole("milestones", milestone, 1) for milestone in milestones)
        increasing = all(earlier < later for earlier, later in pairwise(self.milestones))
        require(increasing, "milestones", "increasing", list(milestones), "list each step once, in order")
        self.gamma = between("gamma", gamma, 0.0, 1.0, _GROWTH, open_below=True)

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """Milestones at half and at three quarters of the run."""
        return cls(milestones=[max(1, total_steps // 2), max(2, total_steps * 3 // 4)], gamma=0.1)

    def factor_at(self, step: int) -> float:
        """``gamma`` to the power of the milestones reached."""
        return self.gamma ** bisect_right(self.milestones, step)


class Exponential(ClosedForm):
    """Multiplies the rate by ``gamma`` at every step: factor_t = gamma ** t.

    Args:
        gamma: in (0, 1].

    Raises:
        ValueError: for an argument out of its range.

    Source: ``torch.optim.lr_scheduler.ExponentialLR``, the same values.

    Example:
        >>> Exponential(gamma=0.5).factor_at(3)
        0.125
    """

    summary = "geometric decay to 1/100"

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = between("gamma", gamma, 0.0, 1.0, _GROWTH, open_below=True)

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """To a hundredth at the end of the run."""
        return cls(gamma=0.01 ** (1 / total_steps))

    def factor_at(self, step: int) -> float:
        """``gamma ** step``."""
        return self.gamma**step


class TimeBased(ClosedForm):
    """Falls as one over the steps: factor_t = 1 / (1 + decay t).

    Args:
        decay: >= 0; the rate is halved after 1 / decay steps.

    Raises:
        ValueError: for an argument out of its range.

    Source: Robbins and Monro 1951; the ``decay`` of Keras's optimizers, ``InverseTimeDecay`` there.

    Example:
        >>> TimeBased(decay=0.01).factor_at(100)
        0.5
    """

    summary = "one over the steps, to 1/11 of the base rate"
    source = "Robbins and Monro 1951"

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = between("decay", decay, 0.0, math.inf, "0 keeps the base rate")

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """To an eleventh at the end of the run."""
        return cls(decay=10 / total_steps)

    def factor_at(self, step: int) -> float:
        """The equation above."""
        return 1.0 / (1.0 + self.decay * step)


class Linear(OverHorizon):
    """Goes down a straight line.

        factor_t = 1 - (1 - min_factor) t / total_steps

    Args:
        total_steps: length T of the run in optimizer steps (``total_iters`` in torch); None: bound later.
        min_factor: the end, a fraction in [0, 1] of the base rate; it would be reached at step T, so the last
            step, T - 1, is still above it.

    Raises:
        ValueError: for an argument out of its range.

    Source: ``torch.optim.lr_scheduler.LinearLR`` with ``start_factor=1, end_factor=min_factor``, the same values.

    Example:
        >>> linear = Linear(total_steps=100)
        >>> [linear.factor_at(step) for step in (0, 50, 75, 1000)]
        [1.0, 0.5, 0.25, 0.010000000000000009]
    """

    summary = "a straight line to zero"
    source = "torch's LinearLR"

    def __init__(self, total_steps: int | None = None, min_factor: float = 0.0) -> None:
        super().__init__(total_steps)
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, _FRACTION)

    def factor_within(self, step: int, total_steps: int) -> float:
        """The equation above."""
        return anneal("linear", 1.0, self.min_factor, step / total_steps)


class Cosine(OverHorizon):
    """Goes down half a cosine wave.

        factor_t = min_factor + (1 - min_factor) (1 + cos(pi t / total_steps)) / 2

    Args:
        total_steps: length T of the run in optimizer steps (``T_max`` in torch); None: bound later.
        min_factor: the end, a fraction in [0, 1] of the base rate; it would be reached at step T, so the last
            step, T - 1, is still above it.

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 1608.03983, eq. 5, without restarts.
    *Differs from torch's CosineAnnealingLR:* ``min_factor`` is relative where ``eta_min`` is a rate, so
    that groups keep their ratios; after the end the rate stays where torch's climbs again.

    Example:
        >>> cosine = Cosine(total_steps=100)
        >>> [round(cosine.factor_at(step), 4) for step in (0, 50, 99, 1000)]
        [1.0, 0.5, 0.0002, 0.0002]
    """

    summary = "half a cosine to zero"
    source = "arXiv 1608.03983"

    def __init__(self, total_steps: int | None = None, min_factor: float = 0.0) -> None:
        super().__init__(total_steps)
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, _FRACTION)

    def factor_within(self, step: int, total_steps: int) -> float:
        """The equation above."""
        return anneal("cos", 1.0, self.min_factor, step / total_steps)


class WarmRestarts(ClosedForm):
    """SGDR: cosine periods, each ``T_mult`` times as long as the one before, for as long as the run goes on.

        factor_t = min_factor + (1 - min_factor) (1 + cos(pi T_cur / T_i)) / 2

    Args:
        T_0: length of the first period in optimizer steps, >= 1.
        T_mult: T_{i+1} = T_mult T_i, a whole number >= 1.
        min_factor: lower end of each period, a fraction in [0, 1] of the base rate.

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 1608.03983, eq. 5.
    *Differs from torch's CosineAnnealingWarmRestarts:* ``min_factor`` is relative where ``eta_min`` is
    a rate, so that groups keep their ratios; ``T_0`` counts optimizer steps.

    Example:
        >>> restarts = WarmRestarts(T_0=10, T_mult=2)
        >>> [round(restarts.factor_at(step), 4) for step in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    name = "sgdr"
    summary = "cosine with warm restarts, at 1/7 and 3/7 of the run"
    source = "arXiv 1608.03983"

    def __init__(self, T_0: int, T_mult: int = 1, min_factor: float = 0.0) -> None:
        super().__init__()
        self.T_0 = whole("T_0", T_0, 1)
        self.T_mult = whole("T_mult", T_mult, 1)
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, _FRACTION)

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """Three periods, of one, two and four sevenths of the run."""
        return cls(T_0=max(1, total_steps // 7), T_mult=2)

    def factor_at(self, step: int) -> float:
        """The factor of ``step`` within the period that it falls into."""
        period = self.T_0
        if self.T_mult == 1:
            step %= period
        # Whole numbers instead of a logarithm: a restart never comes a step early or late.
        while step >= period:
            step -= period
            period *= self.T_mult
        return anneal("cos", 1.0, self.min_factor, step / period)


class Triangular(ClosedForm):
    """Cycles along straight lines between a lower rate and the base rate, the peak of every cycle.

        x = |t / half_cycle - 2 c + 1|  in cycle c = 1 + floor(t / (2 half_cycle))
        factor_t = min_factor + (1 - min_factor) gamma ** (c - 1) max(0, 1 - x)

    Args:
        half_cycle: optimizer steps from the lower rate to the peak, >= 1; a cycle has twice as many.
        min_factor: the lower rate, a fraction in [0, 1] of the base rate.
        gamma: by which the height of each cycle is multiplied, in (0, 1]; 0.5 is the source's "triangular2".

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 1506.01186; ``torch.optim.lr_scheduler.CyclicLR``, the same values.
    *Differs from torch's:* the optimizer's own rate is the peak (``max_lr``); the momentum is not cycled.

    Example:
        >>> cycle = Triangular(half_cycle=10, min_factor=0.2)
        >>> [round(cycle.factor_at(step), 4) for step in (0, 5, 10, 15, 20)]
        [0.2, 0.6, 1.0, 0.6, 0.2]
    """

    summary = "four triangles between a quarter of the base rate and all of it"
    source = "arXiv 1506.01186"

    def __init__(self, half_cycle: int, min_factor: float = 0.25, gamma: float = 1.0) -> None:
        super().__init__()
        self.half_cycle = whole("half_cycle", half_cycle, 1)
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, _FRACTION)
        self.gamma = between("gamma", gamma, 0.0, 1.0, _GROWTH, open_below=True)

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """Four cycles, between a quarter of the base rate and all of it: section 3.3 of the source."""
        return cls(half_cycle=max(1, total_steps // 8))

    def factor_at(self, step: int) -> float:
        """The equation above."""
        cycle, within = divmod(step, 2 * self.half_cycle)
        height = 1.0 - abs(within / self.half_cycle - 1.0)
        return self.min_factor + (1.0 - self.min_factor) * self.gamma**cycle * height


class OneCycle(OverHorizon):
    """1cycle: climbs to the base rate, then anneals far below where it started.

        start = 1 / div_factor,    end = start / final_div_factor,    T = total_steps
        two phases:   start -> 1 at step pct_start T - 1,  1 -> end at step T - 1
        three phases: start -> 1 at step pct_start T - 1,  1 -> start at step 2 pct_start T - 2,  start -> end

    Args:
        total_steps: length of the run in optimizer steps; None: bound later.
        pct_start: fraction in [0, 1] of the run that climbs; at most 0.5 with three phases.
        anneal_strategy: "cos" or "linear".
        div_factor: peak over start, >= 1.
        final_div_factor: start over end, >= 1.
        three_phase: True: go down as far as it climbed, then anneal.

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 1708.07120; ``torch.optim.lr_scheduler.OneCycleLR``, the same values.
    *Differs from torch's:* the optimizer's own rate is the peak (``max_lr``); the momentum is not cycled.

    Example:
        >>> cycle = OneCycle(total_steps=100, div_factor=10, final_div_factor=10)
        >>> [round(cycle.factor_at(step), 4) for step in (0, 29, 99)]
        [0.1, 1.0, 0.01]
    """

    name = "onecycle"
    summary = "up for 30 % of the run, then down"
    source = "arXiv 1708.07120"

    def __init__(
        self,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Strategy = "cos",
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        super().__init__(total_steps)
        most = 0.5 if three_phase else 1.0
        self.pct_start = between("pct_start", pct_start, 0.0, most, "the later phases need room, too")
        self.anneal_strategy: Strategy = one_of("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.div_factor = between("div_factor", div_factor, 1.0, math.inf, _PEAK)
        self.final_div_factor = between("final_div_factor", final_div_factor, 1.0, math.inf, _PEAK)
        self.three_phase = bool(three_phase)

    def factor_within(self, step: int, total_steps: int) -> float:
        """The equations above, at ``step``."""
        start = 1.0 / self.div_factor
        end = start / self.final_div_factor
        climbed = self.pct_start * total_steps - 1
        if self.three_phase:
            ends, heights = [climbed, 2 * climbed, total_steps - 1], [start, 1.0, start, end]
        else:
            ends, heights = [climbed, total_steps - 1], [start, 1.0, end]
        phase = next(k for k, last in enumerate(ends) if step <= last)
        began = ends[phase - 1] if phase else 0.0
        # A phase of no length is over at once.
        progress = (step - began) / (ends[phase] - began) if ends[phase] > began else 1.0
        return anneal(self.anneal_strategy, heights[phase], heights[phase + 1], progress)


class WarmupStableDecay(OverHorizon):
    """Climbs straight to the base rate, stays there, and goes down in the last part of the run.

        T = total_steps,    W = round(pct_warmup T),    D = min(round(pct_decay T), T - W)
        factor_t = (t + 1) / (W + 1)                   for t < W
                 = 1                                   for W <= t < T - D
                 = from 1 to min_factor at progress (t - T + D) / D, along the strategy,   for t >= T - D

    Zero at step -1 and ``min_factor`` at step T lie just outside the run: no step is wasted on a rate of 0.
    ``WarmupStableDecay(pct_warmup=0.1, pct_decay=0.9, anneal_strategy="cos")`` is cosine with warm-up.

    Args:
        total_steps: length T of the run in optimizer steps; None: bound later.
        pct_warmup: fraction W/T of the run that climbs, in [0, 1].
        pct_decay: fraction D/T of the run that goes down, in [0, 1 - pct_warmup].
        anneal_strategy: shape of the decay, "cos" or "linear".
        min_factor: where the decay leads, a fraction in [0, 1] of the base rate.

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 2404.06395 (the shape), with the decay of arXiv 2405.18392 (linear, the last fifth).

    Example:
        >>> wsd = WarmupStableDecay(total_steps=100, pct_warmup=0.1, pct_decay=0.2)
        >>> [round(wsd.factor_at(step), 4) for step in (0, 10, 79, 90, 99)]
        [0.0909, 1.0, 1.0, 0.5, 0.05]
    """

    name = "wsd"
    summary = "warm-up, stable, linear decay at the end"
    source = "arXiv 2404.06395"

    def __init__(
        self,
        total_steps: int | None = None,
        pct_warmup: float = 0.05,
        pct_decay: float = 0.2,
        anneal_strategy: Strategy = "linear",
        min_factor: float = 0.0,
    ) -> None:
        super().__init__(total_steps)
        self.pct_warmup = between("pct_warmup", pct_warmup, 0.0, 1.0, "give a fraction of the run, not steps")
        self.pct_decay = between("pct_decay", pct_decay, 0.0, 1.0, "give a fraction of the run, not steps")
        share = self.pct_warmup + self.pct_decay <= 1.0 + 1e-9
        require(share, "pct_decay", "<= 1 - pct_warmup", pct_decay, "warm-up and decay share the run")
        self.anneal_strategy: Strategy = one_of("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, _FRACTION)

    def factor_within(self, step: int, total_steps: int) -> float:
        """The equations above, at ``step``."""
        warmup = round(self.pct_warmup * total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        decay = min(round(self.pct_decay * total_steps), total_steps - warmup)
        decayed = step - (total_steps - decay)
        if decayed <= 0:
            return 1.0
        return anneal(self.anneal_strategy, 1.0, self.min_factor, decayed / decay)


class Staircase(OverHorizon):
    """Keeps one height per stretch of the run; the heights may go up and down.

        factor_t = factors[number of k with round(boundaries[k] T) <= t],        T = total_steps

    The published MLR-SNet snapshots behave like the staircase (0.729, 0.036, 0.018) over equal thirds: it is
    the control that a learned schedule has to beat.

    Args:
        factors: heights, multiples > 0 of the base rate, at least one.
        boundaries: where the next height begins, as fractions of the run: increasing, in (0, 1), one fewer
            than ``factors``; None: equal stretches.
        total_steps: length T of the run in optimizer steps; None: bound later.

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> stairs = Staircase((1.0, 0.1, 0.01), boundaries=(0.5, 0.75), total_steps=200)
        >>> [stairs.factor_at(step) for step in (0, 99, 100, 150, 1000)]
        [1.0, 1.0, 0.1, 0.01, 0.01]
    """

    summary = "three equal steps of 1, 1/10, 1/100"

    def __init__(
        self,
        factors: Sequence[float],
        boundaries: Sequence[float] | None = None,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(total_steps)
        positive = len(factors) > 0 and all(0.0 < factor < math.inf for factor in factors)
        require(positive, "factors", "one or more finite numbers > 0", factors, "they multiply the base rate")
        if boundaries is None:
            boundaries = [k / len(factors) for k in range(1, len(factors))]
        edges = (0.0, *boundaries, 1.0)
        fits = len(boundaries) == len(factors) - 1 and all(low < high for low, high in pairwise(edges))
        allowed = f"{len(factors) - 1} increasing fractions in (0, 1)"
        require(fits, "boundaries", allowed, boundaries, "one lies between each two factors")
        self.factors = tuple(float(factor) for factor in factors)
        self.boundaries = tuple(float(boundary) for boundary in boundaries)

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """Three equal steps down."""
        return cls((1.0, 0.1, 0.01), total_steps=total_steps)

    def factor_within(self, step: int, total_steps: int) -> float:
        """The height of the stretch that ``step`` lies in."""
        return self.factors[sum(round(boundary * total_steps) <= step for boundary in self.boundaries)]


#: Factor now; sum and number of the window's losses so far; best mean; windows since; windows still to rest.
PlateauState = tuple[float, Any, int, float, int, int]


class ReduceOnPlateau(Schedule):
    """Multiplies the rate by ``factor`` when the training loss has not improved for ``patience`` windows.

        m_k = mean of the losses of steps k every ... (k + 1) every - 1
        m_k is better than b, the best so far:   m_k < (1 - threshold) b  ("rel"),   m_k < b - threshold  ("abs")
        more than ``patience`` windows in a row without a better mean:  factor_t <- max(factor factor_t, min_factor)

    The rate of a step depends on the windows that are complete before it. After a reduction ``cooldown`` windows are
    not counted.

    Args:
        every: steps in a window, >= 1; those of an epoch make it what torch's does with the training loss.
        factor: in (0, 1).
        patience: windows >= 0.
        threshold: >= 0.
        threshold_mode: "rel" or "abs".
        cooldown: windows >= 0.
        min_factor: lower bound, a fraction in [0, 1] of the base rate.

    Raises:
        ValueError: for an argument out of its range.

    Source: ``torch.optim.lr_scheduler.ReduceLROnPlateau``, the same values, on means of the training loss.
    *Differs from torch's:* it reads every step's training loss instead of one number an epoch; ``min_factor`` is
    relative where ``min_lr`` is a rate; there is no ``eps`` below which a reduction is left out.

    Example:
        >>> plateau = ReduceOnPlateau(every=2, patience=1, factor=0.5)
        >>> state, factors = plateau.init_state(), []
        >>> for loss in [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]:
        ...     factor, state = plateau.query(loss, state)
        ...     factors.append(factor)
        >>> factors
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    """

    needs_loss: ClassVar[bool] = True
    name = "plateau"
    summary = "a tenth whenever the training loss of 10 % of the run brings no improvement"
    source = "torch's ReduceLROnPlateau"

    def __init__(
        self,
        every: int = 100,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.every = whole("every", every, 1)
        self.factor = between("factor", factor, 0.0, 1.0, "it lowers the rate", open_below=True)
        self.patience = whole("patience", patience, 0, "count in windows")
        self.threshold = between("threshold", threshold, 0.0, math.inf, "0 takes any lower loss for better")
        self.threshold_mode = one_of("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = whole("cooldown", cooldown, 0, "count in windows")
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, "give a fraction of the base rate, not a rate")

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """In windows of a hundredth of the run."""
        return cls(every=max(1, total_steps // 100))

    def init_state(self) -> PlateauState:
        """The full rate, and no loss seen."""
        return 1.0, 0.0, 0, math.inf, 0, 0

    def forward(self, loss: Loss, state: PlateauState) -> tuple[Rate, PlateauState]:
        """Return the factor before this step's loss, and the state with it; a device is read once a window."""
        current, total, count, best, bad, resting = state
        total, count = total + loss, count + 1
        if count < self.every:
            return current, (current, total, count, best, bad, resting)
        return current, self._after_window(float(total) / count, current, best, bad, resting)

    def query(self, loss: float, state: PlateauState) -> tuple[float, PlateauState]:
        """:meth:`forward` without the cost of a module call."""
        factor, state = self.forward(loss, state)
        return float(factor), state

    def _after_window(self, mean: float, current: float, best: float, bad: int, resting: int) -> PlateauState:
        if self._better(mean, best):
            best, bad = mean, 0
        else:
            bad += 1
        if resting > 0:
            bad, resting = 0, resting - 1
        if bad > self.patience:
            current, bad, resting = max(current * self.factor, self.min_factor), 0, self.cooldown
        return current, 0.0, 0, best, bad, resting

    def _better(self, mean: float, best: float) -> bool:
        if self.threshold_mode == "rel":
            return mean < best * (1.0 - self.threshold)
        return mean < best - self.threshold


#: Factor now; place of the next loss in the window, how many were seen; the window; best mean; means in a row that
#: were better, and worse; means to rest; reductions at the lower bound until it starts anew.
GreedyState = tuple[float, int, tuple[Any, ...], float, int, int, int, int]


class GreedyLR(Schedule):
    """Raises the rate while the smoothed training loss improves, and lowers it while it does not.

        m_t = mean of the last ``window`` losses;   m_t is better than b, the best so far:   m_t < b - threshold
        more than ``patience`` means in a row better:   factor_t <- min(factor_t / factor, max_factor)
        more than ``patience`` means in a row not:      factor_t <- max(factor factor_t, min_factor)

    The rate of a step depends on the losses before it. After ``reset`` reductions that found the rate at its lower
    bound, with none that raised it in between, the rate, best mean and window start anew.

    Args:
        window: losses in the mean, >= 1.
        factor: in (0, 1).
        patience: steps >= 0.
        threshold: >= 0.
        cooldown: steps after a reduction that are not counted, >= 0.
        warmup: steps after a rise that are not counted, >= 0.
        min_factor: lower bound, a multiple >= 0 of the base rate.
        max_factor: upper bound, a multiple >= 1 of the base rate.
        reset: reductions >= 1.

    Raises:
        ValueError: for an argument out of its range.

    Source: arXiv 2512.14527; ``transformers.GreedyLR`` with ``smooth``, the same values.
    *Differs from transformers':* it reads every step's training loss instead of one number an evaluation, and the
    bounds are relative where ``min_lr`` and ``max_lr`` are rates; there is no ``eps`` below which a change is left out.

    Example:
        >>> greedy = GreedyLR(window=1, patience=1, factor=0.5)
        >>> state, factors = greedy.init_state(), []
        >>> for loss in [4.0, 3.0, 2.0, 2.0, 2.0]:
        ...     factor, state = greedy.query(loss, state)
        ...     factors.append(factor)
        >>> factors
        [1.0, 1.0, 2.0, 2.0, 2.0]
        >>> greedy.query(2.0, state)[0]
        1.0
    """

    needs_loss: ClassVar[bool] = True
    name = "greedy"
    summary = "5 % up or down whenever the mean training loss improved, or not, for 1 % of the run"
    source = "arXiv 2512.14527"

    def __init__(
        self,
        window: int = 50,
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        cooldown: int = 0,
        warmup: int = 0,
        min_factor: float = 0.01,
        max_factor: float = 10.0,
        reset: int = 500,
    ) -> None:
        super().__init__()
        self.window = whole("window", window, 1, "count in steps")
        self.factor = between("factor", factor, 0.0, 1.0, "it lowers the rate", open_below=True)
        require(self.factor < 1.0, "factor", "< 1", factor, "1 would never change the rate; use Constant")
        self.patience = whole("patience", patience, 0, "count in steps")
        self.threshold = between("threshold", threshold, 0.0, math.inf, "0 takes any lower loss for better")
        self.cooldown = whole("cooldown", cooldown, 0, "count in steps")
        self.warmup = whole("warmup", warmup, 0, "count in steps")
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, _FRACTION)
        self.max_factor = between("max_factor", max_factor, 1.0, math.inf, "give a multiple of the base rate")
        self.reset = whole("reset", reset, 1, "count in reductions")

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """With the means of a twentieth of the run and the patience of a hundredth: the defaults at 1,000 steps."""
        return cls(window=max(1, total_steps // 20), patience=total_steps // 100)

    def init_state(self) -> GreedyState:
        """The base rate, and no loss seen."""
        return 1.0, 0, (0.0,) * self.window, math.inf, 0, 0, 0, self.reset

    def forward(self, loss: Loss, state: GreedyState) -> tuple[Rate, GreedyState]:
        """Return the factor before this step's loss, and the state with it; a device is read every step."""
        return self.query(float(loss), state)

    def query(self, loss: float, state: GreedyState) -> tuple[float, GreedyState]:
        """:meth:`forward` without the cost of a module call."""
        current, seen, losses, best, good, bad, resting, left = state
        place = seen % self.window
        losses, seen = (*losses[:place], loss, *losses[place + 1 :]), seen + 1
        mean = math.fsum(losses) / min(seen, self.window)
        if resting > 0:
            return current, (current, seen, losses, best, 0, 0, resting - 1, left)
        if mean < best - self.threshold:
            best, good, bad = mean, good + 1, 0
        else:
            good, bad = 0, bad + 1
        after = current
        if good > self.patience:
            after, good, resting, left = min(current / self.factor, self.max_factor), 0, self.warmup, self.reset
        elif bad > self.patience:
            after, bad, resting = max(current * self.factor, self.min_factor), 0, self.cooldown
            left -= after <= self.min_factor
            if left == 0:  # the rest after a reduction is kept, as in transformers
                return current, (*self.init_state()[:6], resting, self.reset)
        return current, (after, seen, losses, best, good, bad, resting, left)

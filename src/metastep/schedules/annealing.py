"""Closed forms that anneal: cosine, warm restarts, 1cycle, warm-up and decay."""

import math
from typing import Literal

from metastep.schedules.arguments import between, one_of, require, whole
from metastep.schedules.closed_form import ClosedForm, OverHorizon

Strategy = Literal["cos", "linear"]

#: What to give where torch takes ``eta_min``.
_FRACTION = "give a fraction of the base rate, not a rate"

#: Why a factor stays at or below 1.
_PEAK = "the base rate is the peak, the ends lie below it"


def anneal(strategy: Strategy, start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1, along half a cosine wave or a straight line."""
    if strategy == "cos":
        return end + (start - end) / 2.0 * (math.cos(math.pi * progress) + 1.0)
    return (end - start) * progress + start


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

    def __init__(self, T_0: int, T_mult: int = 1, min_factor: float = 0.0) -> None:
        super().__init__()
        self.T_0 = whole("T_0", T_0, 1)
        self.T_mult = whole("T_mult", T_mult, 1)
        self.min_factor = between("min_factor", min_factor, 0.0, 1.0, _FRACTION)

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

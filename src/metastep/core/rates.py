"""How a rate moves: from the sums of one group to its next rate, kept positive, finite and inside its bounds.

A rate alpha is stored as its deviation r from the initial rate a0, never as itself: in float32 an increment below half
a unit in the last place of alpha would be lost. "additive" keeps a difference, alpha = a0 + r; every other rule keeps
a log ratio, alpha = a0 exp(r). With s = <g_t, u_{t-1}> over a group and c = s / (|g_t| |u_{t-1}|):

    exponentiated   r <- r + hyper_lr f c               alpha <- alpha exp(hyper_lr f c)
    cosine          r <- r + log(1 + hyper_lr f c)      alpha <- alpha (1 + hyper_lr f c)
    additive        r <- r + hyper_lr f s               alpha <- alpha - hyper_lr f df/dalpha
    log             r <- r + hyper_lr f alpha s         log alpha <- log alpha - hyper_lr f df/dlog alpha

f is the combination weight of the level (exact derivative of the combined rate) or 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

RULES = ("exponentiated", "cosine", "additive", "log")
REDUCTIONS = ("sum", "mean")

# Below this share of the product that its size would give it, a group's |g| |u| counts as rounding noise.
NULL_DIRECTION = 1e-6


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The initial rate of a group and the interval its rates stay in.

    Args:
        initial: Initial rate a0, >= 0.
        low: Smallest rate, >= 0.
        high: Largest rate, >= low.
    """

    initial: float
    low: float
    high: float
    single: tuple[float, float] = field(init=False, repr=False, compare=False)
    double: tuple[float, float] = field(init=False, repr=False, compare=False)

    def deviations(self, rule: str) -> tuple[float, float]:
        """The interval as deviations; a rate that starts at zero cannot move by ratios, so it stays."""
        if rule == "additive":
            return self.low - self.initial, self.high - self.initial
        if self.initial == 0.0:
            return 0.0, 0.0
        return (math.log(self.low / self.initial) if self.low > 0 else -math.inf), math.log(self.high / self.initial)

    def __post_init__(self) -> None:
        for name, kind in (("single", np.float32), ("double", np.float64)):
            low, high = kind(self.low), kind(self.high)
            low = np.nextafter(low, kind(math.inf)) if float(low) < self.low else low
            high = np.nextafter(high, kind(-math.inf)) if float(high) > self.high else high
            inside = (float(low), float(high)) if low <= high else (self.low, self.high)
            object.__setattr__(self, name, inside)

    def inside(self, dtype: torch.dtype) -> tuple[float, float]:
        """The interval in a type's own numbers, rounded inwards, so that a rate read back never lies outside."""
        return self.double if dtype == torch.float64 else self.single


def rate_of(deviation: Tensor, bounds: Bounds, rule: str) -> Tensor:
    """The rate that a deviation stands for, inside its bounds."""
    low, high = bounds.inside(deviation.dtype)
    rate = deviation + bounds.initial if rule == "additive" else deviation.exp() * bounds.initial
    return rate.clamp(low, high)


def deviation_of(rate: Tensor, bounds: Bounds, rule: str) -> Tensor:
    """The deviation that stands for a rate; the inverse of `rate_of` inside the bounds."""
    if rule == "additive":
        return rate - bounds.initial
    if bounds.initial == 0.0:
        return torch.zeros_like(rate)
    return (rate / bounds.initial).clamp(min=torch.finfo(rate.dtype).tiny).log()


def cosine(dot: Tensor, gradient_square: Tensor, direction_square: Tensor, elements: Tensor) -> Tensor:
    """Cosine between gradient and last direction in each group, 0 where either is null or mere rounding noise.

    A group counts as noise when |g|_G |u|_G <= 1e-6 |g| |u| sqrt(n_G / N), the norms without index being those of all
    groups together. A cosine of two noise vectors would be a random number of order 1.

    Args:
        dot: <g, u> per group, (groups,).
        gradient_square: |g|^2 per group, (groups,).
        direction_square: |u|^2 per group, (groups,).
        elements: Number of elements per group, (groups,).
    """
    finite = dot.isfinite() & gradient_square.isfinite() & direction_square.isfinite()
    scale = gradient_square.sqrt() * direction_square.sqrt()
    totals = (torch.where(finite, square, 0.0).sum().sqrt() for square in (gradient_square, direction_square))
    share = (elements / elements.sum().clamp(min=1)).sqrt()
    null = scale <= NULL_DIRECTION * next(totals) * next(totals) * share
    value = torch.where(null, 0.0, (dot / scale).clamp(-1.0, 1.0))
    # What overflowed must not pass for a null direction: NaN is what `bounded` rejects and counts.
    return torch.where(finite, value, math.nan)


def increment(
    rule: str,
    *,
    hyper_lr: float | Tensor,
    dot: Tensor,
    alignment: Tensor,
    rate: Tensor,
) -> Tensor:
    """What a rule adds to the deviation of each group, before bounds.

    Args:
        rule: One of `RULES`.
        hyper_lr: beta or kappa times the weight f of the level.
        dot: <g, u> per group (already divided by its size for a mean).
        alignment: Cosine per group.
        rate: Current rate per group.
    """
    if rule == "exponentiated":
        return hyper_lr * alignment
    if rule == "cosine":
        return torch.log1p(hyper_lr * alignment)
    if rule == "additive":
        return hyper_lr * dot
    return hyper_lr * (rate * dot)


def bounded(deviation: Tensor, step: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """Add a step to a deviation: a step that is not finite is rejected, one that leaves the bounds is clipped.

    Returns:
        The new deviation, which entries were clipped, which were rejected.
    """
    rejected = ~step.isfinite()
    moved = torch.where(rejected, deviation, deviation + step.to(deviation.dtype))
    kept = moved.clamp(low, high)
    return kept, kept != moved, rejected

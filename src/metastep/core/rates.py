"""How rates move, become one, and are regularized: the rules of every hypergradient optimizer.

A rate stays positive, finite and inside its bounds. It is stored as its deviation r from the initial rate a0, never as
itself: in float32 an increment below half a unit in the last place of alpha would be lost. "additive" keeps a
difference, alpha = a0 + r; every other rule keeps a log ratio, alpha = a0 exp(r). With s = <g_t, u_{t-1}> over a group
and c = s / (|g_t| |u_{t-1}|):

    exponentiated   r <- r + hyper_lr f c               alpha <- alpha exp(hyper_lr f c)
    cosine          r <- r + log(1 + hyper_lr f c)      alpha <- alpha (1 + hyper_lr f c)
    additive        r <- r + hyper_lr f s               alpha <- alpha - hyper_lr f df/dalpha
    log             r <- r + hyper_lr f alpha s         log alpha <- log alpha - hyper_lr f df/dlog alpha

f is the combination weight of the level (exact derivative of the combined rate) or 1.

The rates of several levels become one, alpha* = sum_j gamma_j alpha_j, and the weights gamma are learned. With
G_j = df/dgamma_j, the sum over the groups of level j of alpha_j times df/dalpha of a single rate there:

    project   y_j = max(gamma_j - delta (G_j - mean G), eps);  gamma = y / sum y      stays on the simplex
    softmax   gamma = softmax(z);  z_j <- z_j - delta gamma_j (G_j - sum_k gamma_k G_k)
    divide    y_j = max(gamma_j - delta G_j, eps);  gamma = y / sum y                 the paper's; moves even where all
                                                                                      levels hold the same rate
    fixed     gamma stays

Instead of being combined, rates can be regularized towards their parents (coarser levels) and their own past; they keep
the result. A regularization of strength lambda on a rate with hyper-rate beta is, up to how it is evaluated, a convex
combination; it is given here as the weight w that the target gets. For a child with targets p of weight w_p, and hat a
the rate after its plain hypergradient step:

    implicit   a = (1 - sum w) hat a + sum_p w_p a_p        a_p: the parent's rate, itself already regularized
    virtual    a = (1 - sum w) hat a + sum_p w_p hat a_p    the paper's form; parents before their regularization
    explicit   a = hat a - sum_p w_p (a_old - a_p_old)      last step's rates on the right

The target "previous" is the child's own rate of the step before; in the explicit form its term is zero. The strengths
are lambda = w / (2 beta (1 - sum w)) for the implicit form and lambda = w / (2 beta) for the other two.

What keeps all of them from running away is the safeguard of a group, `guarded`: a cut that multiplies every rate. With
the last step d = alpha* u as it was applied, and |g| as it usually is (the mean of its logarithm over about ten steps),
the slope that the step ran into, in usual gradients, is

    q = -<g_t, d> / (|d| usual |g|)

q > 1.5 means that the step went beyond the minimum along its own line and up the other side, by more than noise does:
then cut <- cut / (1 + q), where a secant between a usual slope and this one has its zero. A gradient that is more than
five times as long as usual cuts too, by 5 usual |g| / |g_t|: momentum keeps it for many steps, and where one tensor has
moved and the slope has grown in another, q does not see it. It counts as five usual ones in what is usual from then on,
and alone it leaves a hundredth of the rates. Every other step raises the cut by 1 %, up to 1. Rates begin at a tenth
and rise to their own within five steps, unless one of these goes too far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

RULES = ("exponentiated", "cosine", "additive", "log")
COSINE_RULES = ("exponentiated", "cosine")  # move by the cosine alone, whatever the scale of the loss
REDUCTIONS = ("sum", "mean")
COMBINATIONS = ("project", "softmax", "divide", "fixed")
PULL_FORMS = ("implicit", "virtual", "explicit")
PREVIOUS = "previous"

# Below this share of the product that its size would give it, a group's |g| |u| counts as rounding noise.
NULL_DIRECTION = 1e-6
SMALLEST_WEIGHT = 1e-8

# The safeguard. Chosen on a perceptron without noise, digits/mlp and mnist/mlp; see docs/optimizers.md.
WARM_START, WARM_GROWTH = 0.1, 1.75  # the first cut, and its factor per step on the way up to 1
RECOVERY = 1.01  # that factor after a step that has gone too far
LEAST_CUT = 1e-4  # as far as the rates themselves go by default
NORM_MEMORY = 0.9  # of the logarithm of the gradient's norm
STEEPEST = 1.5  # q beyond which a step has gone too far
LONGEST = 5.0  # usual gradients; a longer one cuts
DEEPEST_CUT = 0.01  # of one step, and of long gradients together
MOST_DECAY = 0.02  # of a parameter that decoupled decay takes in one step, unless the initial rate takes more


@dataclass(frozen=True, kw_only=True)
class RateBounds:
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


def rate_of(deviation: Tensor, bounds: RateBounds, rule: str) -> Tensor:
    """The rate that a deviation stands for, inside its bounds."""
    low, high = bounds.inside(deviation.dtype)
    rate = deviation + bounds.initial if rule == "additive" else deviation.exp() * bounds.initial
    return rate.clamp(low, high)


def deviation_of(rate: Tensor, bounds: RateBounds, rule: str) -> Tensor:
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


def fresh_guard(warm: bool) -> list[float]:
    """The safeguard of a group before its first step, see `guarded`."""
    return [-math.inf, WARM_START if warm else 1.0, float(warm)]


def guarded(guard: Tensor, gradient_square: Tensor, descent: Tensor, step_square: Tensor) -> Tensor:
    """The safeguard of a group after one more gradient; what is not finite is left out.

    A last step that moved nothing tells nothing: the safeguard stays. Torch takes such a step, with a rate and
    gradients of zero, when a checkpoint of a fresh optimizer is asked for.

    Args:
        guard: (3,) logarithm of the usual gradient norm (-inf for none so far), cut, and 1 while rates still warm up.
        gradient_square: |g_t|^2, ().
        descent: <g_t, d> with d the last step as it was applied, ().
        step_square: |d|^2, ().
    """
    usual, cut, warming = guard.to(gradient_square.dtype)
    norm = 0.5 * gradient_square.log()
    usual = torch.where(usual.isfinite(), usual, norm)
    counted = torch.where(norm.isfinite(), norm.clamp(max=usual + math.log(LONGEST)), usual)
    aligned = (descent / (gradient_square * step_square).sqrt()).clamp(-1.0, 1.0)
    slope = -aligned * (norm - usual).exp()
    beyond = slope > STEEPEST  # False for NaN
    long = norm.isfinite() & (norm > counted)
    left = torch.where(beyond, cut * (1 / (1 + slope)).clamp(min=DEEPEST_CUT), cut).clamp(min=LEAST_CUT)
    shortened = (cut * (counted - norm).exp()).clamp(min=DEEPEST_CUT)
    left = torch.where(long, torch.minimum(left, shortened), left)
    warming = torch.where(beyond | long, 0.0, warming)
    risen = torch.where(warming > 0, cut * WARM_GROWTH, cut * RECOVERY).clamp(max=1.0)
    cut = torch.where(beyond | long, left, risen)
    usual = NORM_MEMORY * usual + (1 - NORM_MEMORY) * counted
    return torch.where(step_square > 0, torch.stack([usual, cut, warming]), guard.to(usual.dtype))


def settling(counts: Tensor, steps: int) -> Tensor:
    """The share of adapted rates in those that are used, beside a given one; t times it goes to 0.

    With such a share gradient descent under hypergradients converges, for a given rate at which it would: arXiv
    1703.04782.

    Args:
        counts: How many steps there were, this one included, (T,).
        steps: After how many the share begins to fall, as 1 / t^2.
    """
    return (steps / counts.clamp(min=1)).clamp(max=1.0) ** 2


def rate_limit(initial: float, decay: float) -> float:
    """The largest rate under decoupled decay: their product stays below 0.02, or at what the initial rate makes it."""
    return min(max(MOST_DECAY, initial * decay), 0.99) / decay if decay > 0 else math.inf


def learn_weights(combine: str, weights: Tensor, slopes: Tensor, weight_lr: float) -> Tensor:
    """One step on the combination weights; a step that is not finite is left out.

    Args:
        combine: One of `COMBINATIONS`.
        weights: gamma, (levels,), positive, summing to 1.
        slopes: G, (levels,): derivative of the loss with respect to each weight.
        weight_lr: delta, >= 0.

    Returns:
        The next weights, (levels,).
    """
    if combine == "fixed":
        return weights
    if combine == "softmax":
        mean = (weights * slopes).sum()
        moved = torch.softmax(weights.log() - weight_lr * weights * (slopes - mean), dim=0)
    else:
        centred = slopes - slopes.mean() if combine == "project" else slopes
        moved = (weights - weight_lr * centred).clamp(min=SMALLEST_WEIGHT)
        moved = moved / moved.sum()
    return torch.where(moved.isfinite().all(), moved, weights)


def regularized(
    form: str, hat: Tensor, old: Tensor, weights: Mapping[str, float], targets: Mapping[str, Tensor]
) -> Tensor:
    """The child's rate after its regularization.

    Args:
        form: One of `PULL_FORMS`.
        hat: The child's rates after their plain step.
        old: The child's rates before it.
        weights: Per target, its weight; together less than 1.
        targets: Per target other than "previous", the rates to draw near to, broadcast to the child: of this step and
            regularized (implicit), of this step and plain (virtual), of the step before (explicit).
    """
    result = hat
    for target, weight in weights.items():
        if form == "explicit":
            if target != PREVIOUS:
                result = result - weight * (old - targets[target])
        else:
            result = result + weight * ((old if target == PREVIOUS else targets[target]) - hat)
    return result

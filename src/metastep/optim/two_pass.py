"""The two passes over the parameters, in multi-tensor form.

Both are pure functions of tensors and frozen settings: run as they are they are the eager path, traced by
`torch.compile` they are the compiled one. Shapes: A active tensors (those with a gradient), R their rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metastep.core.levels import row_dots, row_sums
from metastep.core.rates import Bounds, bounded, deviation_of, increment, rate_of
from metastep.core.regularization import PREVIOUS, pulled

if TYPE_CHECKING:
    from metastep.optim.direction import Buffers, Direction


@dataclass(frozen=True, kw_only=True)
class ParameterRule:
    """How elementwise rates move.

    Args:
        rule: One of `RULES`, or "driven": the hypergradient is left in `.grad` of the deviations.
        hyper_lr: Hyper-rate of the level.
        bounds: Initial rate and bounds.
        pull_form: How pulls are evaluated.
        pulls: Pairs of target and weight.
    """

    rule: str
    hyper_lr: float
    bounds: Bounds
    pull_form: str = "implicit"
    pulls: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both passes are specialised to.

    Args:
        unit_dims: Per active tensor, the dimension of its rows, or None.
        regularized: Whether the hypergradient is that of the loss plus coupled decay (True) or of the data loss.
        include_decay: Whether decoupled decay is part of the last direction.
        parameter: Set where single elements have rates of their own.
    """

    unit_dims: tuple[int | None, ...]
    regularized: bool
    include_decay: bool
    parameter: ParameterRule | None


@dataclass(frozen=True)
class Rates:
    """The rates that a pass applies.

    Args:
        rows: Per active tensor, the combined rate of the coarser levels, broadcastable against it.
        deviations: Per active tensor, its elementwise deviations; empty without the parameter level.
        shares: (A,) weight of the elementwise rates times the schedule factor.
        factors: (A,) schedule factor at each tensor's last update.
        weight: () weight f of the elementwise hypergradient.
        parents: Per pull target, per active tensor, that level's rates, broadcastable.
    """

    rows: list[Tensor]
    deviations: list[Tensor]
    shares: Tensor
    factors: Tensor
    weight: Tensor
    parents: dict[str, list[Tensor]]


def measure(
    direction: Direction,
    plan: Plan,
    parameters: list[Tensor],
    gradients: list[Tensor],
    buffers: Buffers,
    counts: Tensor,
    rates: Rates,
) -> Tensor:
    """First pass: sums of <g_t, u_{t-1}>, |g_t|^2, |u_{t-1}|^2 per row; then the buffers take in g_t.

    Args:
        direction: The base optimizer's direction.
        plan: Static settings.
        parameters: theta_{t-1} of the active tensors.
        gradients: g_t.
        buffers: State of the direction, advanced in place.
        counts: (A,) updates of each tensor before this one.
        rates: The rates of the last step; elementwise deviations move here, in place.

    Returns:
        (3, R), or (6, R) with elementwise rates: then also <g, alpha_p u>, clipped and rejected elements.
    """
    signed, decayed = judged_gradients(direction, parameters, gradients)
    judged = decayed if plan.regularized else signed
    previous = direction.recover(buffers, counts)
    columns: list[list[Tensor]] = []
    for i, (gradient, u, dim) in enumerate(zip(judged, previous, plan.unit_dims, strict=True)):
        g, u = wide(gradient), wide(u)
        if plan.include_decay:
            rate = rates.rows[i]
            if plan.parameter is not None:
                rate = rate + rates.shares[i] * rate_of(rates.deviations[i], plan.parameter.bounds, plan.parameter.rule)
            decay = direction.decoupled_decay
            u = (u + decay * wide(parameters[i])) / (1 - rate * decay)
        if plan.parameter is None:
            columns.append([row_dots(g, u, dim), row_dots(g, g, dim), row_dots(u, u, dim)])
        else:
            product = g * u
            sums = [product, g * g, u * u, *move_elementwise(plan.parameter, rates, i, product)]
            columns.append([row_sums(values, dim) for values in sums])
    direction.advance(decayed, buffers, counts + 1)
    return torch.stack([torch.cat(column) for column in zip(*columns, strict=True)])


def judged_gradients(
    direction: Direction, parameters: list[Tensor], gradients: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the objective that is descended, without and with coupled weight decay."""
    signed = list(torch._foreach_neg(gradients)) if direction.maximize else gradients
    if direction.weight_decay == 0:
        return signed, signed
    return signed, list(torch._foreach_add(signed, parameters, alpha=direction.weight_decay))


def move_elementwise(rule: ParameterRule, rates: Rates, i: int, product: Tensor) -> list[Tensor]:
    """Move the elementwise deviations of tensor i in place; the sums that are wanted of it, elementwise."""
    deviation = rates.deviations[i]
    old = rate_of(deviation, rule.bounds, rule.rule)
    dot = product * rates.factors[i]
    weighted = old * dot
    if rule.rule == "driven":
        deviation.grad = (-rates.weight * weighted).to(deviation.dtype)
        none = torch.zeros_like(weighted)
        return [weighted, none, none]
    step = increment(
        rule.rule, hyper_lr=rule.hyper_lr * rates.weight, dot=dot, alignment=torch.sign(dot) + 0 * dot, rate=old
    )
    low, high = rule.bounds.deviations(rule.rule)
    kept, clipped, rejected = bounded(deviation, step, low, high)
    own = {target: weight for target, weight in rule.pulls if target == PREVIOUS or rule.pull_form == "explicit"}
    if own:
        # The part of a pull that knows only last step's rates happens here; what it leaves out of the convex
        # combination is divided out, so that `pull_elementwise` finishes it with this step's parents.
        hat = rate_of(kept, rule.bounds, rule.rule)
        targets = {target: rates.parents[target][i] for target in own if target != PREVIOUS}
        rest = 1.0 if rule.pull_form == "explicit" else 1.0 - sum(w for t, w in rule.pulls if t != PREVIOUS)
        own = {target: weight / rest for target, weight in own.items()}
        kept = deviation_within(pulled(rule.pull_form, hat, old, own, targets), rule)
    deviation.copy_(kept)
    return [weighted, clipped.to(product.dtype), rejected.to(product.dtype)]


def deviation_within(rate: Tensor, rule: ParameterRule) -> Tensor:
    """The deviation of a rate after its pull, inside the bounds."""
    low, high = rule.bounds.deviations(rule.rule)
    return deviation_of(rate.clamp(rule.bounds.low, rule.bounds.high), rule.bounds, rule.rule).clamp(low, high)


def pull_elementwise(rule: ParameterRule, rates: Rates, i: int) -> None:
    """Draw the elementwise rates of tensor i to this step's parents, in place."""
    weights = {target: weight for target, weight in rule.pulls if target != PREVIOUS}
    if not weights or rule.pull_form == "explicit":
        return
    hat = rate_of(rates.deviations[i], rule.bounds, rule.rule)
    targets = {target: rates.parents[target][i] for target in weights}
    rates.deviations[i].copy_(deviation_within(pulled(rule.pull_form, hat, hat, weights, targets), rule))


def move(
    direction: Direction, plan: Plan, parameters: list[Tensor], buffers: Buffers, counts: Tensor, rates: Rates
) -> None:
    """Second pass: theta <- theta - alpha* (.) u, in place, with every rate complete.

    Args:
        direction: The base optimizer's direction.
        plan: Static settings.
        parameters: theta of the active tensors.
        buffers: State of the direction after `measure`.
        counts: (A,) updates of each tensor including this one.
        rates: The rates of this step.
    """
    for i, (theta, u) in enumerate(zip(parameters, direction.recover(buffers, counts), strict=True)):
        rate = rates.rows[i]
        if plan.parameter is not None:
            pull_elementwise(plan.parameter, rates, i)
            rate = rate + rates.shares[i] * rate_of(rates.deviations[i], plan.parameter.bounds, plan.parameter.rule)
        decay = direction.decoupled_decay
        if theta.dtype in (torch.float32, torch.float64):
            if decay:
                theta.mul_(1 - rate * decay)
            theta.addcmul_(u.to(theta.dtype), rate.to(theta.dtype), value=-1)
        else:
            precise = wide(theta)
            theta.copy_(precise * (1 - rate * decay) - rate * wide(u))


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

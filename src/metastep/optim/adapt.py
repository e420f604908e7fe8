"""Between the two passes: the sums of a group move its rates and its combination weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from metastep.core.inner import fold, spread
from metastep.core.rates import (
    COSINE_RULES,
    PREVIOUS,
    bounded,
    cosine,
    deviation_of,
    guarded,
    increment,
    learn_weights,
    rate_of,
    regularized,
)
from metastep.optim.online_scaling import SCALE, OnlineScaling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metastep.optim.group_state import GroupState
    from metastep.optim.options import Options, RateOptimizer
    from metastep.optim.two_pass import GroupStep


@dataclass(frozen=True)
class GlobalSums:
    """The sums over a whole group, or over all groups with their kept ratios.

    Args:
        sums: (3, 1): <g, u>, |g|^2, |u|^2.
        elements: (1,) how many elements they are of.
        ratio: Rate of this group relative to the one that the shared rate is reckoned in.
        hyper_lr: Hyper-rate of the shared rate.
    """

    sums: Tensor
    elements: Tensor
    ratio: float
    hyper_lr: float


def scaled_rows(state: GroupState, rows: Tensor) -> Tensor:
    """Bring the schedule factor of each tensor's last update into the sums: u is what a rate of 1 moved it by."""
    factor = state.factors[state.layout.tensor_of_row].to(rows.dtype)
    scaled = rows.clone()
    scaled[0] *= factor
    scaled[2] *= factor * factor
    return scaled


def global_sums(
    options: Options, state: GroupState, rows: Tensor, fresh: Tensor | None, ratio: float = 1.0
) -> GlobalSums:
    """Sums over the tensors that were also updated in the step before: only they answer to the last global rate."""
    elements = state.layout.elements["global"]
    if fresh is not None:
        rows, elements = torch.where(fresh, rows[:3], 0.0), (state.layout.row_elements * fresh).sum().reshape(1)
    return GlobalSums(fold(rows[:3], state.layout, "global"), elements, ratio, options.hyper_rates.get("global", 0.0))


def share_global(parts: list[GlobalSums]) -> list[GlobalSums]:
    """One rate for all groups, in the ratios of their initial rates: every group gets the sums of all."""
    device = parts[0].sums.device
    powers = torch.tensor([[p.ratio**k for k in (1, 0, 2)] for p in parts], dtype=parts[0].sums.dtype, device=device)
    sums = sum(part.sums.to(device) * power.unsqueeze(1) for part, power in zip(parts, powers, strict=True))
    elements = sum(part.elements.to(device) for part in parts)
    assert isinstance(sums, Tensor)
    assert isinstance(elements, Tensor)
    return [GlobalSums(sums.to(p.sums.device), elements.to(p.sums.device), p.ratio, parts[0].hyper_lr) for p in parts]


def share_rate(source: GroupState, groups: Iterable[GroupState | None]) -> None:
    """Under scope="all" every group holds the global rate of the source, in the ratio of the initial rates.

    Its safeguard too: a group that joins late would begin with a cut of its own.
    """
    for state in groups:
        if state is None or state is source:
            continue
        state.guard.copy_(source.guard)
        if "global" in source.deviations and "global" in state.deviations:
            ratio = state.bounds.initial / (source.bounds.initial or 1.0) if state.rule == "additive" else 1.0
            low, high = state.bounds.deviations(state.rule)
            shared = source.deviations["global"].to(state.weights.device, state.dtype) * ratio
            state.deviations["global"].copy_(shared.clamp(low, high))


def guard(steps: Sequence[GroupStep], shared: bool) -> None:
    """Move the safeguards of some groups by one step; of groups that share a rate, by the sums of all."""
    readings = [guard_sums(step.state, step.rows, step.fresh) for step in steps if step.rows is not None]
    for step, reading in zip(steps, readings, strict=True):
        sums = torch.stack([r.to(reading.device) for r in readings]).sum(dim=0) if shared else reading
        step.state.guard.copy_(guarded(step.state.guard, *sums))


def guard_sums(state: GroupState, rows: Tensor, fresh: Tensor | None) -> Tensor:
    """What the safeguard looks at, (3,): |g|^2, and with the last step d as it was applied <g, d> and |d|^2.

    Elementwise rates enter <g, d> as they are, and |d| as if they stood at the group's initial rate.
    """
    square = rows[1].sum()
    if fresh is not None:
        rows = torch.where(fresh, rows, 0.0)
    rates = state.combined_rows(before=1).to(rows.dtype)
    descent = (rates * rows[0]).sum()
    if "parameter" in state.levels:
        share = state.weights[-1].to(rows.dtype)
        descent = descent + share * rows[3].sum()
        rates = rates + share * state.bounds.initial
    return torch.stack([square, descent, (rates * rates * rows[2]).sum()])


def adapt(options: Options, state: GroupState, rows: Tensor, whole: GlobalSums, fresh: Tensor | None) -> None:
    """Move every coarser rate and the weights of a group by one step, in place (Jacobi order: all from old values).

    Args:
        options: The group's options.
        state: Its packed rates.
        rows: (K, R) sums of `measure` with the schedule factor brought in; zero for tensors without gradient.
        whole: The sums for the global level.
        fresh: (R,) bool, rows that were also updated in the step before; None if all were.
    """
    layout, bounds, rule = state.layout, state.bounds, state.rule
    low, high = bounds.deviations(rule)
    old, sums = {}, {"global": whole.sums}
    for level, deviation in state.deviations.items():
        old[level] = rate_of(deviation, bounds, rule)
    slopes = weight_slopes(state, rows, old, fresh) if options.learns_weights else None
    for level in old:
        if level != "global":
            sums[level] = fold(rows[:3], layout, level)
    hats, clips, rejects = {}, [], []
    for level, rate in old.items():
        elements, ratio, hyper_lr = layout.elements[level], 1.0, options.hyper_rates[level]
        if level == "global":
            elements, ratio, hyper_lr = whole.elements, whole.ratio, whole.hyper_lr
        share = state.weights[state.levels.index(level)] if options.weighs_hypergradients else 1.0
        dot, gradient_square, direction_square = sums[level]
        state.alignment[level] = alignment = cosine(dot, gradient_square, direction_square, elements)
        if options.reduce == "mean":
            dot = dot / elements.clamp(min=1)
        if ratio != 1.0:
            rate = rate / (ratio or 1.0)
        step = increment(rule, hyper_lr=hyper_lr * share, dot=dot, alignment=alignment, rate=rate)
        if ratio != 1.0 and rule == "additive":
            step = step * ratio
        kept, clipped, rejected = bounded(state.deviations[level], step, low, high)
        hats[level] = kept
        clips.append(clipped.sum())
        rejects.append(rejected.sum())
    if slopes is not None:
        state.weights.copy_(learn_weights(options.combine, state.weights.to(slopes.dtype), slopes, options.weight_lr))
    if options.pull is not None:
        state.plain_deviations = hats if options.pull_form == "virtual" else {}
        hats = regularize_levels(options, state, hats, old)
    for level, hat in hats.items():
        state.deviations[level].copy_(hat)
    if "parameter" in state.levels:
        clips.append(rows[4].sum().long())
        rejects.append(rows[5].sum().long())
    state.rejections += torch.stack([torch.stack(clips), torch.stack(rejects)])


def weight_slopes(state: GroupState, rows: Tensor, old: dict[str, Tensor], fresh: Tensor | None) -> Tensor:
    """G: derivative of the loss with respect to each combination weight, (J,).

    Under the cosine rules G is divided by |g| |alpha* u| (elementwise rates standing at the group's initial rate),
    which makes it independent of the scale of the loss; under the others it is the plain derivative.
    """
    if fresh is not None:
        rows = torch.where(fresh, rows, 0.0)
    per_level, combined = [], torch.zeros_like(rows[0])
    for position, level in enumerate(state.levels):
        if level == "parameter":
            per_level.append(-rows[3].sum())
            used = torch.full_like(rows[0], state.bounds.initial)
        else:
            used = spread(old[level].to(rows.dtype), state.layout, level)
            per_level.append(-(used * rows[0]).sum())
        combined = combined + state.weights[position] * used
    slopes = torch.stack(per_level)
    if state.rule not in COSINE_RULES:
        return slopes
    scale = rows[1].sum().sqrt() * (combined * combined * rows[2]).sum().sqrt()
    return torch.where(scale > 0, slopes / scale, 0.0)


def regularize_levels(
    options: Options, state: GroupState, hats: dict[str, Tensor], old: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Regularize each coarser level towards its parents and its past, coarse to fine."""
    form, result = options.pull_form, dict(hats)
    bounds, rule = state.bounds, state.rule
    low, high = bounds.deviations(rule)
    sources = {"implicit": result, "virtual": hats, "explicit": None}[form]
    for level in hats:
        weights = (options.pull or {}).get(level)
        if not weights:
            continue
        targets = {}
        for target in weights:
            if target != PREVIOUS:
                values = old[target] if sources is None else rate_of(sources[target], bounds, rule)
                targets[target] = to_children(state, values, target, level)
        hat = rate_of(hats[level], bounds, rule)
        rate = regularized(form, hat, old[level], weights, targets).clamp(bounds.low, bounds.high)
        result[level] = deviation_of(rate, bounds, rule).clamp(low, high)
    return result


def to_children(state: GroupState, values: Tensor, parent: str, child: str) -> Tensor:
    """Give every group of the child level its parent's value."""
    layout = state.layout
    children = torch.zeros(layout.sizes[child], dtype=values.dtype, device=values.device)
    return children.index_copy_(0, layout.index[child], spread(values, layout, parent).contiguous())


class RateOptimizerStep:
    """A torch optimizer over the packed log ratios of one group: each hypergradient becomes a `.grad`.

    Differs from a rule in that it has a state of its own; it starts anew when a parameter joins the group late.
    """

    def __init__(self, factory: RateOptimizer, state: GroupState, options: Options) -> None:
        self.state, self.normalises = state, isinstance(factory, OnlineScaling)
        self.tensors = [*state.deviations.values(), *state.elementwise]
        self.names = [*state.deviations, *["parameter"] * len(state.elementwise)]
        if isinstance(factory, OnlineScaling):
            pairs = zip(self.names, self.tensors, strict=True)
            self.optimizer = factory([{"params": [t], "lr": options.hyper_rates[name]} for name, t in pairs])
        else:
            self.optimizer = factory(self.tensors)

    def step(self, options: Options, rows: Tensor, whole: GlobalSums, active: Tensor) -> None:
        """Let the optimizer move every deviation, then bring it back inside its bounds.

        Args:
            options: The group's options; elementwise hypergradients are already in `.grad`.
            rows: (K, R) sums of this step.
            whole: The sums for the global level.
            active: (R,) rows of tensors that have a gradient; the rates of others keep still.
        """
        state, layout = self.state, self.state.layout
        for level, deviation in state.deviations.items():
            dot, elements, ratio = whole.sums[0], whole.elements, whole.ratio or 1.0
            if level != "global":
                dot, elements, ratio = fold(rows[:1], layout, level)[0], layout.elements[level], 1.0
            if options.reduce == "mean":
                dot = dot / elements.clamp(min=1)
            share = state.weights[state.levels.index(level)] if options.scaled else 1.0
            deviation.grad = (-share * state.rates(level) / ratio * dot).to(deviation.dtype)
        pairs = zip(self.names, self.tensors, strict=True)
        moving = [(name, tensor) for name, tensor in pairs if tensor.grad is not None]
        before, usable = [], []
        for _, tensor in moving:
            gradient = cast("Tensor", tensor.grad)
            if self.normalises:
                gradient = torch.where(whole.sums[2] > 0, gradient * (SCALE / whole.sums[2]), 0.0).to(tensor.dtype)
            before.append(tensor.clone())
            usable.append(gradient.isfinite())
            tensor.grad = torch.where(usable[-1], gradient, 0.0)
        self.optimizer.step()
        low, high = state.bounds.deviations(state.rule)
        none = torch.zeros((), dtype=torch.int64, device=state.weights.device)
        clips, rejects = dict.fromkeys(state.levels, none), dict.fromkeys(state.levels, none)
        for (name, tensor), old, finite in zip(moving, before, usable, strict=True):
            moved = torch.where(finite & tensor.isfinite(), tensor, old)
            if name in ("layer", "unit"):
                moved = torch.where(fold(active[None].to(rows.dtype), layout, name)[0] > 0, moved, old)
            clips[name] = clips[name] + ((moved < low) | (moved > high)).sum()
            rejects[name] = rejects[name] + (~finite).sum()
            tensor.copy_(moved.clamp(low, high))
            tensor.grad = None
        state.rejections += torch.stack([torch.stack([c[level] for level in state.levels]) for c in (clips, rejects)])

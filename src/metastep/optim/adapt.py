"""Between the two passes: the sums of a group move its rates and its combination weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metastep.core.combination import learn_weights
from metastep.core.levels import fold, spread
from metastep.core.rates import bounded, cosine, deviation_of, increment, rate_of
from metastep.core.regularization import PREVIOUS, pulled
from metastep.optim.options import Group, hyper_rates

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metastep.optim.group_rates import GroupRates

COSINE_RULES = ("exponentiated", "cosine")


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


def scaled_rows(rates: GroupRates, rows: Tensor) -> Tensor:
    """Bring the schedule factor of each tensor's last update into the sums: u is what a rate of 1 moved it by."""
    factor = rates.factors[rates.layout.tensor_of_row].to(rows.dtype)
    scaled = rows.clone()
    scaled[0] *= factor
    scaled[2] *= factor * factor
    return scaled


def global_sums(rates: GroupRates, rows: Tensor, fresh: Tensor | None, ratio: float, hyper_lr: float) -> GlobalSums:
    """Sums over the tensors that were also updated in the step before: only they answer to the last global rate."""
    elements = rates.layout.elements["global"]
    if fresh is not None:
        rows, elements = torch.where(fresh, rows[:3], 0.0), (rates.layout.row_elements * fresh).sum().reshape(1)
    return GlobalSums(fold(rows[:3], rates.layout, "global"), elements, ratio, hyper_lr)


def share_global(parts: list[GlobalSums]) -> list[GlobalSums]:
    """One rate for all groups, in the ratios of their initial rates: every group gets the sums of all."""
    device = parts[0].sums.device
    powers = torch.tensor([[p.ratio**k for k in (1, 0, 2)] for p in parts], dtype=parts[0].sums.dtype, device=device)
    sums = sum(part.sums.to(device) * power.unsqueeze(1) for part, power in zip(parts, powers, strict=True))
    elements = sum(part.elements.to(device) for part in parts)
    assert isinstance(sums, Tensor)
    assert isinstance(elements, Tensor)
    return [GlobalSums(sums.to(p.sums.device), elements.to(p.sums.device), p.ratio, parts[0].hyper_lr) for p in parts]


def share_rate(source: GroupRates, groups: Iterable[GroupRates | None]) -> None:
    """Under scope="all" every group holds the global rate of the source, in the ratio of the initial rates."""
    for rates in groups:
        if rates is not None and rates is not source and "global" in rates.deviations:
            ratio = rates.bounds.initial / (source.bounds.initial or 1.0) if rates.rule == "additive" else 1.0
            low, high = rates.bounds.deviations(rates.rule)
            shared = source.deviations["global"].to(rates.weights.device, rates.dtype) * ratio
            rates.deviations["global"].copy_(shared.clamp(low, high))


def adapt(group: Group, rates: GroupRates, rows: Tensor, whole: GlobalSums, fresh: Tensor | None) -> None:
    """Move every coarser rate and the weights of a group by one step, in place (Jacobi order: all from old values).

    Args:
        group: The parameter group with its options.
        rates: Its packed rates.
        rows: (K, R) sums of `measure` with the schedule factor brought in; zero for tensors without gradient.
        whole: The sums for the global level.
        fresh: (R,) bool, rows that were also updated in the step before; None if all were.
    """
    betas, levels = hyper_rates(group), [level for level in rates.levels if level != "parameter"]
    betas["global"] = whole.hyper_lr
    old = {level: rates.rates(level) for level in levels}
    hats, clips, rejects = {}, {}, {}
    for level in levels:
        share = rates.weights[rates.levels.index(level)] if group["scaled"] and group["pull"] is None else 1.0
        step = level_step(group, rates, level, rows, whole, betas[level] * share, old[level])
        low, high = rates.bounds.deviations(rates.rule)
        kept, clipped, rejected = bounded(rates.deviations[level], step, low, high)
        hats[level], clips[level], rejects[level] = kept, clipped.sum(), rejected.sum()
    if len(rates.levels) > 1 and group["weight_lr"] > 0 and group["pull"] is None and group["combine"] != "fixed":
        slopes = weight_slopes(group, rates, rows, old, fresh)
        rates.weights.copy_(learn_weights(group["combine"], rates.weights.to(slopes.dtype), slopes, group["weight_lr"]))
    if group["pull"] is not None:
        rates.plain_deviations = hats if group["pull_form"] == "virtual" else {}
        hats = pull_levels(group, rates, hats, old)
    for level in levels:
        rates.deviations[level].copy_(hats[level])
    if "parameter" in rates.levels:
        clips["parameter"], rejects["parameter"] = rows[4].sum().long(), rows[5].sum().long()
    rates.rejections += torch.stack([torch.stack([c[level] for level in rates.levels]) for c in (clips, rejects)])


def level_step(
    group: Group, rates: GroupRates, level: str, rows: Tensor, whole: GlobalSums, hyper_lr: float | Tensor, rate: Tensor
) -> Tensor:
    """What the deviations of one coarser level move by, before bounds."""
    sums, elements, ratio = whole.sums, whole.elements, whole.ratio
    if level != "global":
        sums, elements, ratio = fold(rows[:3], rates.layout, level), rates.layout.elements[level], 1.0
    dot = sums[0]
    rates.alignment[level] = alignment = cosine(dot, sums[1], sums[2], elements)
    if group["reduce"] == "mean":
        dot = dot / elements.clamp(min=1)
    if ratio != 1.0:
        rate = rate / (ratio or 1.0)
    step = increment(rates.rule, hyper_lr=hyper_lr, dot=dot, alignment=alignment, rate=rate)
    return step * ratio if rates.rule == "additive" and ratio != 1.0 else step


def weight_slopes(
    group: Group, rates: GroupRates, rows: Tensor, old: dict[str, Tensor], fresh: Tensor | None
) -> Tensor:
    """G: derivative of the loss with respect to each combination weight, (J,).

    Under the cosine rules G is divided by |g| |alpha* u| (elementwise rates standing at the group's initial rate),
    which makes it independent of the scale of the loss; under the others it is the plain derivative.
    """
    layout = rates.layout
    if fresh is not None:
        rows = torch.where(fresh, rows, 0.0)
    per_level, combined = [], torch.zeros_like(rows[0])
    for position, level in enumerate(rates.levels):
        if level == "parameter":
            per_level.append(-rows[3].sum())
            used = torch.full_like(rows[0], rates.bounds.initial)
        else:
            used = spread(old[level].to(rows.dtype), layout, level)
            per_level.append(-(used * rows[0]).sum())
        combined = combined + rates.weights[position] * used
    slopes = torch.stack(per_level)
    if rates.rule not in COSINE_RULES:
        return slopes
    scale = rows[1].sum().sqrt() * (combined * combined * rows[2]).sum().sqrt()
    return torch.where(scale > 0, slopes / scale, 0.0)


def pull_levels(group: Group, rates: GroupRates, hats: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draw each coarser level to its parents and its past, coarse to fine."""
    form, result = group["pull_form"], dict(hats)
    low, high = rates.bounds.deviations(rates.rule)
    for level, weights in group["pull"].items():
        if level == "parameter":
            continue
        sources = {"implicit": result, "virtual": hats}.get(form)
        targets = {}
        for target in weights:
            if target != PREVIOUS:
                values = old[target] if sources is None else rate_of(sources[target], rates.bounds, rates.rule)
                targets[target] = to_children(rates, values, target, level)
        hat = rate_of(hats[level], rates.bounds, rates.rule)
        rate = pulled(form, hat, old[level], weights, targets).clamp(rates.bounds.low, rates.bounds.high)
        result[level] = deviation_of(rate, rates.bounds, rates.rule).clamp(low, high)
    return result


def to_children(rates: GroupRates, values: Tensor, parent: str, child: str) -> Tensor:
    """Give every group of the child level its parent's value."""
    layout = rates.layout
    children = torch.zeros(layout.sizes[child], dtype=values.dtype, device=values.device)
    return children.index_copy_(0, layout.index[child], spread(values, layout, parent).contiguous())

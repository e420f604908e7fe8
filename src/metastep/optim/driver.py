"""Rates driven by any torch optimizer: the hypergradient of each log rate becomes its `.grad`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from metastep.core.levels import fold

if TYPE_CHECKING:
    from torch import Tensor

    from metastep.optim.adapt import GlobalSums
    from metastep.optim.group_rates import GroupRates
    from metastep.optim.options import Group, RateOptimizer


class RateDriver:
    """A torch optimizer over the packed log ratios of one group.

    Differs from a rule in that it has a state of its own; it starts anew when a parameter joins the group late.
    """

    def __init__(self, factory: RateOptimizer, rates: GroupRates) -> None:
        self.rates = rates
        self.tensors = [*rates.deviations.values(), *rates.elementwise]
        self.optimizer = factory(self.tensors)

    def step(self, group: Group, rows: Tensor, whole: GlobalSums, active: Tensor) -> None:
        """Let the optimizer move every deviation, then bring it back inside its bounds.

        Args:
            group: The parameter group with its options; elementwise hypergradients are already in `.grad`.
            rows: (K, R) sums of this step.
            whole: The sums for the global level.
            active: (R,) rows of tensors that have a gradient; the rates of others keep still.
        """
        rates, layout = self.rates, self.rates.layout
        for level, deviation in rates.deviations.items():
            dot, elements, ratio = whole.sums[0], whole.elements, whole.ratio or 1.0
            if level != "global":
                dot, elements, ratio = fold(rows[:1], layout, level)[0], layout.elements[level], 1.0
            if group["reduce"] == "mean":
                dot = dot / elements.clamp(min=1)
            share = rates.weights[rates.levels.index(level)] if group["scaled"] else 1.0
            deviation.grad = (-share * rates.rates(level) / ratio * dot).to(deviation.dtype)
        names = [*rates.deviations, *["parameter"] * len(rates.elementwise)]
        moving = [(name, tensor) for name, tensor in zip(names, self.tensors, strict=True) if tensor.grad is not None]
        before, usable = [], []
        for _, tensor in moving:
            gradient = cast("Tensor", tensor.grad)
            before.append(tensor.clone())
            usable.append(gradient.isfinite())
            tensor.grad = torch.where(usable[-1], gradient, 0.0)
        self.optimizer.step()
        low, high = rates.bounds.deviations(rates.rule)
        none = torch.zeros((), dtype=torch.int64, device=rates.weights.device)
        clips, rejects = dict.fromkeys(rates.levels, none), dict.fromkeys(rates.levels, none)
        for (name, tensor), old, finite in zip(moving, before, usable, strict=True):
            wanted = torch.where(finite & tensor.isfinite(), tensor, old)
            if name in ("layer", "unit"):
                wanted = torch.where(fold(active[None].to(rows.dtype), layout, name)[0] > 0, wanted, old)
            clips[name] = clips[name] + ((wanted < low) | (wanted > high)).sum()
            rejects[name] = rejects[name] + (~finite).sum()
            tensor.copy_(wanted.clamp(low, high))
            tensor.grad = None
        rates.rejections += torch.stack([torch.stack([c[level] for level in rates.levels]) for c in (clips, rejects)])

"""The CPU kernel's rates: one call moves them between the passes, one gives every row its combined rate.

What `adapt` does in a few dozen tensor operations costs more than a millisecond, much of a step of a small network.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metastep.core.combination import COMBINATIONS
from metastep.core.rates import RULES
from metastep.optim.options import DRIVEN, Group, hyper_rates

if TYPE_CHECKING:
    from torch import Tensor

    from metastep.optim.group_rates import GroupRates
    from metastep.optim.work import Work

Pointer = ctypes.c_void_p


class CLevel(ctypes.Structure):
    """`Level` of native_rates.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("groups", "by_row")),
        *((name, Pointer) for name in ("first", "elements", "deviation", "alignment")),
        ("hyper_lr", ctypes.c_double),
    ]


class CRates(ctypes.Structure):
    """`Rates` of native_rates.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "tensors", "levels", "weights")),
        *((name, Pointer) for name in ("begin", "factors", "weight", "clipped", "rejected")),
        *((name, ctypes.c_double) for name in ("initial", "low", "high", "weight_lr")),
        *((name, ctypes.c_float) for name in ("low_rate", "high_rate")),
        *((name, ctypes.c_int32) for name in ("rule", "combine", "scaled", "mean")),
    ]


@dataclass(frozen=True, eq=False)
class NativeRates:
    """The packed rates of one group as the kernel sees them; it reads and writes the tensors of `GroupRates`.

    Args:
        settings: What the structures were made from, besides the tensors.
        arguments: The first two of the kernel's functions.
        alignment: Level to its cosines, written by the kernel.
        kept: What the structures point to.
    """

    settings: tuple[object, ...]
    arguments: tuple[Any, ...]
    alignment: dict[str, Tensor]
    kept: tuple[object, ...]


def takes(work: Work) -> bool:
    """Whether the kernel can move this step's rates: no pulls, no driver, every tensor active two steps running."""
    whole = work.active_mask is None and work.fresh is None
    return whole and work.group["pull"] is None and work.group["rule"] != DRIVEN


def native_rates(group: Group, rates: GroupRates) -> NativeRates:
    """The kernel's view of the rates of a group; made anew when a setting changed."""
    betas = hyper_rates(group)
    settings = (*betas.values(), group["weight_lr"], group["combine"], group["scaled"], group["reduce"])
    known = rates.cache.get("native rates")
    if isinstance(known, NativeRates) and known.settings == settings:
        return known
    layout, coarse, size = rates.layout, list(rates.deviations), len(rates.members)
    alignment = {level: torch.zeros(layout.sizes[level], dtype=torch.float64) for level in coarse}
    firsts = {"global": [0] * size, "layer": layout.layer_indices, "unit": layout.unit_offsets}
    kept = {name: np.asarray(values, dtype=np.int64) for name, values in firsts.items()}
    kept["begin"] = np.cumsum((0, *layout.row_counts), dtype=np.int64)
    levels = (CLevel * len(coarse))(
        *(
            CLevel(
                groups=layout.sizes[level],
                by_row=level == "unit",
                first=kept[level].ctypes.data,
                elements=layout.elements[level].data_ptr(),
                deviation=rates.deviations[level].data_ptr(),
                alignment=alignment[level].data_ptr(),
                hyper_lr=betas[level],
            )
            for level in coarse
        )
    )
    low, high = rates.bounds.deviations(rates.rule)
    low_rate, high_rate = rates.bounds.inside(rates.dtype)
    structure = CRates(
        rows=sum(layout.row_counts),
        tensors=size,
        levels=len(coarse),
        weights=len(rates.levels),
        begin=kept["begin"].ctypes.data,
        factors=rates.factors.data_ptr(),
        weight=rates.weights.data_ptr(),
        clipped=rates.rejections[0].data_ptr(),
        rejected=rates.rejections[1].data_ptr(),
        initial=rates.bounds.initial,
        low=low,
        high=high,
        weight_lr=group["weight_lr"],
        low_rate=low_rate,
        high_rate=high_rate,
        rule=RULES.index(rates.rule) if rates.rule in RULES else 0,  # a driven rate reads as a ratio
        combine=COMBINATIONS.index(group["combine"]),
        scaled=group["scaled"],
        mean=group["reduce"] == "mean",
    )
    arguments = (ctypes.byref(structure), levels)
    made = NativeRates(settings, arguments, alignment, (structure, kept))
    rates.cache["native rates"] = made
    return made

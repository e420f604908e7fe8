"""The rates of one parameter group: packed into a few vectors to compute with, viewed per parameter in `state`.

Shapes: T members (parameters that have had a gradient), R rows, L layers, U units, J levels.

`state[p]` is what a checkpoint holds; each entry is a view into the packed vectors here, so nothing is copied between
the two. Where a view was replaced (by loading, or by moving state between devices) the vectors are built anew.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metastep.core.distributed import local
from metastep.core.levels import Layout, default_unit_dim, make_layout, spread
from metastep.core.rates import Bounds, rate_of
from metastep.optim.options import Group, bounds_of, start_weights
from metastep.optim.shards import refuse_flattened, shards_of

if TYPE_CHECKING:
    from collections.abc import Sequence

State = dict[str, Any]

# Keys that every adapting parameter has in `state`, beside its direction's buffers and one "..._deviation" per level.
SHARED_KEYS = ("step", "last_factor", "last_update", "combination_weights", "rejections")


def deviation_key(level: str) -> str:
    """State key of a level's deviation."""
    return f"{level}_deviation"


def rate_keys(levels: Sequence[str]) -> tuple[str, ...]:
    """State keys that belong to the rates of these levels."""
    return (*SHARED_KEYS, *(deviation_key(level) for level in levels))


def bounds_arguments(group: Group) -> tuple[object, ...]:
    """What the bounds are made of."""
    return group["initial_rate"], group["min_lr"], group["max_lr"]


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class GroupRates:
    """Packed rates of the members of one parameter group.

    Attributes:
        members: The parameters, in the group's order.
        states: Their entries in the optimizer's state.
        names: Their names, or positions in the group.
        layout: Rows and how they fold.
        deviations: Level to packed deviations: (1,), (L,), (U,), float32 (float64 beside float64 parameters).
        shards: Where the rows of sharded members are; None if all are whole.
        elementwise: Per member, the deviations of its elements that are here; empty without the parameter level.
        weights: (J,) combination weights.
        rejections: (2, J) int64, updates that were clipped and that were rejected so far.
        counts: (T,) updates of each member.
        factors: (T,) schedule factor at each member's last update.
        last_updates: Per member, the optimizer step of its last update, 0 before it.
        plain_deviations: Level to deviations of this step before its pulls, in the virtual form.
        alignment: Level to the cosines of the last step, as packed as the deviations; empty before the second step.
    """

    def __init__(self, group: Group, members: list[Tensor], states: list[State]) -> None:
        refuse_flattened(group, members)
        self.members = members
        self.states = states
        self.everyone = list(range(len(members)))
        self.complex = any(p.is_complex() for p in members)
        self.bounds: Bounds = bounds_of(group)
        self._bounds_from = bounds_arguments(group)
        self.levels: tuple[str, ...] = group["levels"]
        self.rule: str = group["rule"]
        positions = {id(p): i for i, p in enumerate(group["params"])}
        names = group.get("param_names")
        self.names = [names[positions[id(p)]] if names else str(positions[id(p)]) for p in members]
        device = members[0].device
        self.layout = group_layout(group, members, self.names, device)
        self.shards = shards_of(members, self.layout)
        double = any(p.dtype in (torch.float64, torch.complex128) for p in members) and device.type != "mps"
        self.dtype = torch.float64 if double else torch.float32
        self._pack(group, states, device)
        self.alignment: dict[str, Tensor] = {}
        self.plain_deviations: dict[str, Tensor] = {}  # of this step before its pulls, for the virtual form
        self.lr = torch.zeros((), dtype=self.dtype, device=device)
        self._lr_written: float | None = None
        self.cache: dict[object, Any] = {}  # what engines derive from the layout
        self._masks: dict[object, Tensor] = {}

    def _pack(self, group: Group, states: list[State], device: torch.device) -> None:
        """Gather what the states hold, start what they lack, and make every entry a view of the whole."""
        layout, size = self.layout, len(states)
        self.counts = torch.tensor([float(s.get("step", 0.0)) for s in states], dtype=torch.float32, device=device)
        self.factors = torch.ones(size, dtype=self.dtype, device=device)
        self.last_updates = [int(s.get("last_update", 0)) for s in states]
        self.deviations = {
            level: torch.zeros(layout.sizes[level], dtype=self.dtype, device=device)
            for level in self.levels
            if level != "parameter"
        }
        self.weights = torch.tensor(start_weights(group), dtype=self.dtype, device=device)
        self.rejections = torch.zeros(2, len(self.levels), dtype=torch.int64, device=device)
        self.elementwise: list[Tensor] = []
        for i, (parameter, state) in enumerate(zip(self.members, states, strict=True)):
            views = self._views(i)
            for key, view in views.items():
                if key != "step" and key in state:
                    view.copy_(state[key])
            state.update(views)
            state["last_update"] = self.last_updates[i]
            if "parameter" in self.levels:
                key, real = deviation_key("parameter"), real_view(parameter)
                if key not in state:
                    state[key] = torch.zeros_like(
                        real, dtype=self.dtype if real.dtype == torch.float64 else torch.float32
                    )
                self.elementwise.append(local(state[key]))

    def _views(self, i: int) -> dict[str, Tensor]:
        layout = self.layout
        views = {
            "step": self.counts[i],
            "last_factor": self.factors[i],
            "combination_weights": self.weights,
            "rejections": self.rejections,
        }
        if "global" in self.deviations:
            views[deviation_key("global")] = self.deviations["global"][0]
        if "layer" in self.deviations:
            views[deviation_key("layer")] = self.deviations["layer"][layout.layer_indices[i]]
        if "unit" in self.deviations:
            start = layout.unit_offsets[i]
            views[deviation_key("unit")] = self.deviations["unit"][start : start + layout.row_counts[i]]
        return views

    def serves(self, group: Group, members: list[Tensor], states: list[State], buffers: Sequence[str]) -> bool:
        """Whether these vectors are still what the states show, for these members and settings."""
        if len(members) != len(self.members) or not all(map(operator.is_, members, self.members)):
            return False
        if not all(map(operator.is_, states, self.states)):
            return False
        if (self.rule, self.levels, self._bounds_from) != (group["rule"], group["levels"], bounds_arguments(group)):
            return False
        for state in states:
            step = state.get("step")
            if step is None or step._base is not self.counts:
                return False
        return all(key in state for key in buffers for state in states)

    def real(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of the members' types, what is here of them; complex ones as pairs of real numbers."""
        if self.shards is not None:
            tensors = [local(tensor) for tensor in tensors]
        return [real_view(tensor) for tensor in tensors] if self.complex else tensors

    def rates(self, level: str) -> Tensor:
        """The rates of a coarser level without the schedule factor, packed."""
        return rate_of(self.deviations[level], self.bounds, self.rule)

    def elementwise_rates(self, i: int) -> Tensor:
        """The rates of member i's elements, without the schedule factor."""
        return rate_of(self.elementwise[i], self.bounds, self.rule)

    def targets(self, level: str) -> Tensor:
        """The rates that a pull of single elements draws to: plain ones in the virtual form, else as they stand."""
        deviation = self.plain_deviations.get(level, self.deviations[level])
        return rate_of(deviation, self.bounds, self.rule)

    def combined_rows(self) -> Tensor:
        """(R,) the weighted sum of the coarser levels' rates, without the schedule factor."""
        rows = torch.zeros(self.layout.tensor_of_row.shape[0], dtype=self.dtype, device=self.weights.device)
        for position, level in enumerate(self.levels):
            if level != "parameter":
                rows = rows + self.weights[position] * spread(self.rates(level), self.layout, level)
        return rows

    def write_lr(self, lr: float | Tensor) -> Tensor:
        """The group's current `lr` as a 0-d tensor on the device; written only when it changed, never read back."""
        if isinstance(lr, Tensor):
            self.lr.copy_(lr.reshape(()), non_blocking=True)
            self._lr_written = None
        elif lr != self._lr_written:
            self.lr.fill_(lr)
            self._lr_written = lr
        return self.lr

    def mask(self, chosen: Sequence[int]) -> Tensor:
        """(T,) True for the chosen members; kept, because they rarely change."""
        key = tuple(chosen)
        if key not in self._masks:
            if len(self._masks) > 64:
                self._masks.clear()
            mask = torch.zeros(len(self.members), dtype=torch.bool)
            mask[list(key)] = True
            self._masks[key] = mask.to(self.counts.device)
        return self._masks[key]


def group_layout(group: Group, members: list[Tensor], names: list[str], device: torch.device) -> Layout:
    """Rows, layers and units of the members, as the group's options say."""
    shapes = [real_view(p).shape for p in members]
    chosen = group["unit_dims"] or {}
    dims = []
    for parameter, name in zip(members, names, strict=True):
        dim = chosen.get(name, default_unit_dim(parameter.shape))
        if dim is not None and not 0 <= dim < parameter.dim():
            raise ValueError(
                f"unit_dims must give {name!r} one of its {parameter.dim()} dimensions or None, got {dim!r}; "
                "count from 0."
            )
        dims.append(dim)
    layer_keys = [name.rpartition(".")[0] if group["layers"] == "module" else name for name in names]
    unit_keys = list(names)
    if group["tie_bias"]:
        units = {name: p.shape[d] for name, p, d in zip(names, members, dims, strict=True) if d is not None}
        for i, (name, parameter) in enumerate(zip(names, members, strict=True)):
            head, dot, leaf = name.rpartition(".")
            weight = head + dot + leaf.replace("bias", "weight")
            if "bias" in leaf and parameter.dim() == 1 and units.get(weight) == parameter.shape[0]:
                dims[i], unit_keys[i] = 0, weight
    return make_layout(
        shapes,
        units="unit" in group["levels"],
        unit_dims=dims,
        layer_keys=layer_keys,
        unit_keys=unit_keys,
        device=device,
    )

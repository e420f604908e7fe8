"""The rates of one parameter group: packed into a few vectors to compute with, viewed per parameter in `state`.

Shapes: T members (parameters that have had a gradient), R rows, L layers, U units, J levels.

`state[p]` is what a checkpoint holds; each entry is a view into the packed vectors here, so nothing is copied between
the two. Where a view was replaced (by loading, or by moving state between devices) the vectors are built anew.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metastep.core.distributed import (
    Ranks,
    is_flattened,
    is_sharded,
    local,
    local_gradient,
    local_indices,
    part_count,
    ranks_of,
)
from metastep.core.inner import spread
from metastep.core.levels import RowLayout, default_unit_dim, make_layout
from metastep.core.rates import fresh_guard, rate_of, settling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.optim.directions import Direction
    from metastep.optim.options import Group, Options

State = dict[str, Any]

# Keys that every adapting parameter has in `state`, beside its direction's buffers and one "..._deviation" per level.
SHARED_KEYS = ("step", "last_factor", "last_update", "combination_weights", "rejections")
SAFEGUARD = "safeguard"  # which states of earlier versions lack


def deviation_key(level: str) -> str:
    """State key of a level's deviation."""
    return f"{level}_deviation"


def rate_keys(levels: Sequence[str]) -> tuple[str, ...]:
    """State keys that belong to the rates of these levels."""
    return (*SHARED_KEYS, SAFEGUARD, *(deviation_key(level) for level in levels))


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def start_buffers(parameter: Tensor, state: State, direction: Direction) -> None:
    """Make the buffers of a direction that a parameter lacks, like the parameter, memory format included."""
    for key in direction.buffers:
        if state.get(key) is None:
            value = direction.start(key)
            filled = complex(value, value) if parameter.is_complex() else value
            state[key] = torch.full_like(parameter, filled, memory_format=torch.preserve_format)


class GroupState:
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
        factors: (T,) schedule factor at each member's last update, times the cut of the safeguard.
        guard: (3,) the safeguard: logarithm of the usual gradient norm, cut, warm-up; see `guarded`.
        limit: Largest rate that is applied; infinite without decoupled decay.
        last_updates: Per member, the optimizer step of its last update, 0 before it.
        plain_deviations: Level to deviations of this step before their regularization, in the virtual form.
        alignment: Level to the cosines of the last step, as packed as the deviations; empty before the second step.
        lr: () the group's current `lr`, on the device.
    """

    def __init__(self, group: Group, options: Options, members: list[Tensor], states: list[State]) -> None:
        self.members, self.states = members, states
        self.kinds = [(p.shape, p.dtype) for p in members]
        self.everyone = list(range(len(members)))
        self.complex = any(p.is_complex() for p in members)
        self.bounds, self.levels, self.rule, self.settle = options.bounds, options.levels, options.rule, options.settle
        positions = {id(p): i for i, p in enumerate(group["params"])}
        names = group.get("param_names")
        self.names = [names[positions[id(p)]] if names else str(positions[id(p)]) for p in members]
        device = members[0].device
        if options.levels != ("parameter",) and any(map(is_flattened, members)):
            raise ValueError(
                f"levels must be ('parameter',) for parameters that FSDP1 has flattened, got {options.levels}: a rank "
                "has a piece of one long vector, not layers and units; shard with torch.distributed.fsdp.fully_shard."
            )
        self.layout = group_layout(options, members, self.names, device)
        self.shards = shards_of(members, self.layout)
        double = any(p.dtype in (torch.float64, torch.complex128) for p in members) and device.type != "mps"
        self.dtype = torch.float64 if double else torch.float32
        if options.safeguard and any(map(is_flattened, members)):
            raise ValueError(
                "safeguard must be False for parameters that FSDP1 has flattened, got True: a rank has a piece of one "
                "long vector, and would cut rates of its own; shard with torch.distributed.fsdp.fully_shard."
            )
        self.limit = math.inf
        self._pack(options, states, device)
        self.alignment: dict[str, Tensor] = {}
        self.plain_deviations: dict[str, Tensor] = {}
        self.lr = torch.zeros((), dtype=self.dtype, device=device)
        self._lr_written: float | None = None
        self.cache: dict[object, Any] = {}  # what the passes derive from the layout
        self._masks: dict[object, Tensor] = {}

    def _pack(self, options: Options, states: list[State], device: torch.device) -> None:
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
        self.weights = torch.tensor(options.start_weights, dtype=self.dtype, device=device)
        warm = options.safeguard and not any(self.last_updates)
        self.guard = torch.tensor(fresh_guard(warm), dtype=self.dtype, device=device)
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
            SAFEGUARD: self.guard,
        }
        if "global" in self.deviations:
            views[deviation_key("global")] = self.deviations["global"][0]
        if "layer" in self.deviations:
            views[deviation_key("layer")] = self.deviations["layer"][layout.layer_indices[i]]
        if "unit" in self.deviations:
            start = layout.unit_offsets[i]
            views[deviation_key("unit")] = self.deviations["unit"][start : start + layout.row_counts[i]]
        return views

    def serves(self, options: Options, members: list[Tensor], states: list[State], buffers: Sequence[str]) -> bool:
        """Whether these vectors are still what the states show, for these members and settings.

        Raises:
            ValueError: If a parameter has changed its shape or type.
        """
        if len(members) != len(self.members) or not all(map(operator.is_, members, self.members)):
            return False
        if [(p.shape, p.dtype) for p in members] != self.kinds:
            for name, (shape, dtype), p in zip(self.names, self.kinds, members, strict=True):
                if (p.shape, p.dtype) != (shape, dtype):
                    raise ValueError(
                        f"parameters must keep their shapes and types, got {tuple(p.shape)} {p.dtype} for {name!r}, "
                        f"which had {tuple(shape)} {dtype}; make a new optimizer after such a change."
                    )
        if not all(map(operator.is_, states, self.states)):
            return False
        asked = options.rule, options.levels, options.bounds, options.settle
        if (self.rule, self.levels, self.bounds, self.settle) != asked:
            return False
        for state in states:
            step = state.get("step")
            if step is None or step._base is not self.counts:
                return False
            for key in buffers:
                if key not in state:
                    return False
        return True

    def real(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of the members' types, what is here of them; complex ones as pairs of real numbers."""
        if self.shards is not None:
            tensors = [local(tensor) for tensor in tensors]
        return [real_view(tensor) for tensor in tensors] if self.complex else tensors

    def tensors(
        self, parameters: list[Tensor], active: list[int], keys: Sequence[str]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, list[Tensor]]]:
        """The active parameters, their gradients and their buffers by key, as `real` gives them."""
        gradients: list[Any] = [p.grad if self.shards is None else local_gradient(p) for p in parameters]
        states = [self.states[i] for i in active]
        buffers = {key: self.real([state[key] for state in states]) for key in keys}
        return self.real(parameters), self.real(gradients), buffers

    def rates(self, level: str) -> Tensor:
        """The rates of a coarser level without the schedule factor, packed."""
        return rate_of(self.deviations[level], self.bounds, self.rule)

    def elementwise_rates(self, i: int) -> Tensor:
        """The rates of member i's elements, without the schedule factor."""
        return rate_of(self.elementwise[i], self.bounds, self.rule)

    def parent_rates(self, level: str) -> Tensor:
        """What the rates of elements are regularized towards: plain rates in the virtual form, else as they stand."""
        deviation = self.plain_deviations.get(level, self.deviations[level])
        return rate_of(deviation, self.bounds, self.rule)

    def combined_rows(self, before: int = 0) -> Tensor:
        """(R,) the weighted sum of the coarser levels' rates, without the schedule factor.

        Args:
            before: Of how many steps before the counted ones the rates are, where they go over to one that is given.
        """
        rates = {}
        for level, deviation in self.deviations.items():
            rates[level] = rate_of(deviation, self.bounds, self.rule)
        rows = torch.zeros(self.layout.tensor_of_row.shape[0], dtype=self.dtype, device=self.weights.device)
        for position, level in enumerate(self.levels):
            if level != "parameter":
                rows = rows + self.weights[position] * spread(rates[level], self.layout, level)
        if self.settle is not None:
            rate, steps = self.settle
            share = settling(self.counts.to(rows.dtype) - before, steps)[self.layout.tensor_of_row]
            rows = share * rows + (1 - share) * rate
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

    def factor(self, lr: float | Tensor, guarded: bool) -> Tensor:
        """() what multiplies the rates now: the schedule's `lr` relative to the initial one, times the cut."""
        lr = self.write_lr(lr)
        factor = lr / self.bounds.initial if self.bounds.initial > 0 else torch.ones_like(lr)
        return factor * self.guard[1] if guarded else factor

    def write_factors(self, lr: float | Tensor, chosen: Tensor | None, guarded: bool) -> None:
        """Note the factor of this step for the chosen members, (T,) bool; None for all."""
        factor = self.factor(lr, guarded)
        if chosen is None:
            self.factors.copy_(factor.expand_as(self.factors))
        else:
            self.factors.copy_(torch.where(chosen, factor, self.factors))

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


def group_layout(options: Options, members: list[Tensor], names: list[str], device: torch.device) -> RowLayout:
    """Rows, layers and units of the members, as the options say."""
    shapes = [real_view(p).shape for p in members]
    chosen = options.unit_dims or {}
    dims = []
    for parameter, name in zip(members, names, strict=True):
        dim = chosen.get(name, default_unit_dim(real_view(parameter).shape))
        if dim is not None and not 0 <= dim < parameter.dim():
            raise ValueError(
                f"unit_dims must give {name!r} one of its {parameter.dim()} dimensions or None, got {dim!r}; "
                "count from 0."
            )
        dims.append(dim)
    layer_keys = [name.rpartition(".")[0] if options.layers == "module" else name for name in names]
    unit_keys = list(names)
    if options.tie_bias:
        units = {name: p.shape[d] for name, p, d in zip(names, members, dims, strict=True) if d is not None}
        for i, (name, parameter) in enumerate(zip(names, members, strict=True)):
            head, dot, leaf = name.rpartition(".")
            weight = head + dot + leaf.replace("bias", "weight")
            if "bias" in leaf and parameter.dim() == 1 and units.get(weight) == parameter.shape[0]:
                dims[i], unit_keys[i] = 0, weight
    return make_layout(
        shapes,
        units="unit" in options.levels,
        unit_dims=dims,
        layer_keys=layer_keys,
        unit_keys=unit_keys,
        device=device,
    )


@dataclass(frozen=True, eq=False)
class Shards:
    """Sharded parameters: which rows of a group are here.

    The passes run on the parts that are here, as if they were the tensors. Between them the row sums of all groups go
    out in one message, and every rank moves the same coarser rates from the same sums; rates of single elements stay
    where the elements are.

    Args:
        ranks: Among whom the members are spread.
        by_member: Per member, the places of its rows that are here among the group's R rows.
        parts: (R,) into how many parts the tensor of a row is cut.
        device: Of the members.
    """

    ranks: Ranks
    by_member: tuple[range, ...]
    parts: Tensor
    device: torch.device
    _places: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def places(self, active: Sequence[int]) -> Tensor:
        """Places of the rows here of some members, in order; kept, because they rarely change."""
        key = tuple(active)
        if key not in self._places:
            if len(self._places) > 64:
                self._places.clear()
            rows = [row for i in key for row in self.by_member[i]]
            self._places[key] = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return self._places[key]


def shards_of(members: Sequence[Tensor], layout: RowLayout) -> Shards | None:
    """How the members of a group are cut; None if all are whole."""
    if not any(map(is_sharded, members)):
        return None
    begin, places = 0, []
    for member, dim, count in zip(members, layout.unit_dims, layout.row_counts, strict=True):
        here = range(count) if dim is None else local_indices(member, dim)
        places.append(range(begin + here.start, begin + here.stop))
        begin += count
    parts = torch.tensor([part_count(member) for member in members], dtype=layout.row_elements.dtype)
    parts = parts.to(layout.tensor_of_row.device)[layout.tensor_of_row]
    return Shards(ranks_of(members), tuple(places), parts, layout.tensor_of_row.device)

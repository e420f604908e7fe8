"""The compiled CPU engine: momentum SGD and Adam over dense float32 tensors, each number touched once a pass.

It exists because `torch.compile` made the same two passes 2 to 3 times slower than this on the processors tried and
takes most of a minute to compile; this takes seconds, once per machine. Between the passes one call moves the rates:
what `metastep.optim.adapt` does in a few dozen tensor operations costs more than a millisecond, much of a step of a
small network. It computes what `two_pass` and `adapt` compute, which are the definition; tests hold the two together.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metastep.compiled import library
from metastep.core import rates
from metastep.optim.directions import (
    FIRST_MOMENT,
    LARGEST_MOMENT,
    LAST_GRADIENT,
    MOMENTUM,
    SECOND_MOMENT,
    AdamDirection,
    MomentumDirection,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.optim.directions import Direction
    from metastep.optim.group_state import GroupState
    from metastep.optim.options import Options
    from metastep.optim.two_pass import GroupStep

LONGEST_PIECE = 8192  # elements: short enough for sums in float32
TASK = 32768  # elements: long enough to be worth a thread's while
SHORTEST_STRETCH = 16  # mean elements per stretch of a row below which loops cost more than they save
COARSE, FINE = 3, 6  # sums of a piece, without and with elementwise rates
#: State key to the member of `Tensors` in kernels.cpp.
BUFFER_MEMBERS = {
    MOMENTUM: "first",
    LAST_GRADIENT: "second",
    FIRST_MOMENT: "first",
    SECOND_MOMENT: "second",
    LARGEST_MOMENT: "largest",
}

SOURCE = Path(__file__).with_name("kernels.cpp")
#: Of core/rates.py, which the kernels share.
CONSTANTS = (
    "NULL_DIRECTION",
    "SMALLEST_WEIGHT",
    "STEEPEST",
    "LONGEST",
    "DEEPEST_CUT",
    "LEAST_CUT",
    "WARM_GROWTH",
    "RECOVERY",
    "NORM_MEMORY",
)
FLAGS = ("-mprefer-vector-width=512", "-fopenmp", *(f"-D{name}={getattr(rates, name)!r}" for name in CONSTANTS))

Pointer = ctypes.c_void_p
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


class CTable(ctypes.Structure):
    """`Table` of kernels.cpp."""

    _fields_ = [
        ("tasks", ctypes.c_int64),
        *((name, Pointer) for name in ("begin", "tensor", "offset", "length", "row")),
    ]


class CElementwise(ctypes.Structure):
    """`Elementwise` of kernels.cpp."""

    _fields_ = [
        ("rule", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("step", "initial", "low_rate", "high_rate", "low", "high")),
        *((name, Pointer) for name in ("weight", "factor")),
    ]


class CTensors(ctypes.Structure):
    """`Tensors` of kernels.cpp."""

    _fields_ = [(name, Pointer) for name in ("theta", "gradient", "first", "second", "largest", "deviation")]


class CSettings(ctypes.Structure):
    """`Settings` of kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_float) for name in ("sign", "decay", "judged_decay", "decoupled")),
        *((name, ctypes.c_float) for name in ("momentum", "dampening", "eps", "limit")),
        *((name, ctypes.c_double) for name in ("beta1", "beta2")),
        ("tensors", ctypes.c_int64),
        ("counts", Pointer),
    ]


class CLevel(ctypes.Structure):
    """`Level` of kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("groups", "by_row")),
        *((name, Pointer) for name in ("first", "elements", "deviation", "alignment")),
        ("hyper_lr", ctypes.c_double),
    ]


class CRates(ctypes.Structure):
    """`Rates` of kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "tensors", "levels", "weights")),
        *((name, Pointer) for name in ("begin", "factors", "weight", "guard", "clipped", "rejected")),
        *((name, ctypes.c_double) for name in ("initial", "low", "high", "weight_lr")),
        *((name, ctypes.c_float) for name in ("low_rate", "high_rate")),
        *((name, ctypes.c_int32) for name in ("rule", "combine", "scaled", "mean")),
    ]


def load() -> ctypes.CDLL | None:
    """The kernels as a library, built if need be; None where that is impossible."""
    return library(SOURCE, *FLAGS) if platform.machine() in ("x86_64", "AMD64") else None


@functools.cache
def code(name: str) -> int:
    """The number of a rule, a combination or a kind of momentum in kernels.cpp; -1 where that does not know it."""
    kernels = load()
    return -1 if kernels is None else int(kernels.metastep_code(name.encode()))


@dataclass(frozen=True, eq=False)
class Table:
    """How the active tensors are cut into pieces and tasks; the arrays are kept alive beside the pointers to them."""

    pieces: int
    rows: int
    arrays: tuple[Indices, ...]
    c: CTable


def cut(parameters: Sequence[Tensor], unit_dims: Sequence[int | None]) -> Table:
    """Cut dense tensors into pieces of rows: all stretches of memory with one index along the unit dim are a row."""
    columns: list[list[Indices]] = []
    first_row = 0
    for k, (tensor, dim) in enumerate(zip(parameters, unit_dims, strict=True)):
        size = tensor.numel()
        units, stretch = (1, size) if dim is None else (tensor.shape[dim], tensor.stride(dim))
        if size:
            starts = np.arange(0, size, stretch)
            cuts = np.arange(0, stretch, LONGEST_PIECE)
            offsets = (starts[:, None] + cuts[None, :]).reshape(-1)
            lengths = np.tile(np.minimum(LONGEST_PIECE, stretch - cuts), len(starts))
            rows = first_row + np.repeat(np.arange(len(starts)) % units, len(cuts))
            columns.append([np.full_like(offsets, k), offsets, lengths, rows])
        first_row += units
    tensors, offsets, lengths, rows = (
        np.ascontiguousarray(np.concatenate([column[j] for column in columns]), dtype=np.int64) for j in range(4)
    )
    ends = np.cumsum(lengths) // TASK
    begin = np.concatenate([[0], np.flatnonzero(np.diff(ends)) + 1, [len(lengths)]]).astype(np.int64)
    arrays = (begin, tensors, offsets, lengths, rows)
    c = CTable(len(begin) - 1, *(array.ctypes.data for array in arrays))
    return Table(len(lengths), first_row, arrays, c)


@dataclass(frozen=True, eq=False)
class RatesView:
    """The packed rates of one group as the kernels see them; they read and write the tensors of `GroupState`.

    Args:
        made_from: What the structures were made from, besides the tensors.
        arguments: The first two of the kernels' functions.
        alignment: Level to its cosines, written by the kernel.
        kept: What the structures point to.
    """

    made_from: tuple[object, ...]
    arguments: tuple[Any, ...]
    alignment: dict[str, Tensor]
    kept: tuple[object, ...]


def rates_view(options: Options, state: GroupState) -> RatesView:
    """The kernels' view of the rates of a group; made anew when an option changed."""
    rates = options.hyper_rates
    made_from = (*rates.values(), options.weight_lr, options.combine, options.scaled, options.reduce, options.safeguard)
    known = state.cache.get("cpu rates")
    if isinstance(known, RatesView) and known.made_from == made_from:
        return known
    layout, coarse, size = state.layout, list(state.deviations), len(state.members)
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
                deviation=state.deviations[level].data_ptr(),
                alignment=alignment[level].data_ptr(),
                hyper_lr=rates[level],
            )
            for level in coarse
        )
    )
    low, high = state.bounds.deviations(state.rule)
    low_rate, high_rate = state.bounds.inside(state.dtype)
    structure = CRates(
        rows=sum(layout.row_counts),
        tensors=size,
        levels=len(coarse),
        weights=len(state.levels),
        begin=kept["begin"].ctypes.data,
        factors=state.factors.data_ptr(),
        weight=state.weights.data_ptr(),
        guard=state.guard.data_ptr() if options.safeguard else None,
        clipped=state.rejections[0].data_ptr(),
        rejected=state.rejections[1].data_ptr(),
        initial=state.bounds.initial,
        low=low,
        high=high,
        weight_lr=options.weight_lr,
        low_rate=low_rate,
        high_rate=high_rate,
        rule=code(state.rule) if code(state.rule) >= 0 else code("exponentiated"),  # of others only rates are read
        combine=code(options.combine),
        scaled=options.scaled,
        mean=options.reduce == "mean",
    )
    made = RatesView(made_from, (ctypes.byref(structure), levels), alignment, (structure, kept))
    state.cache["cpu rates"] = made
    return made


class CpuPasses:
    """The two passes and what is between them, over tensors that stay where they are from step to step.

    Args:
        library: The kernels.
        step: The first step that these tensors take.
        lists: Member of `Tensors` in kernels.cpp to the tensors of each active parameter.
    """

    adapts = True

    def __init__(self, library: ctypes.CDLL, step: GroupStep, lists: dict[str, list[Tensor]]) -> None:
        self.library, self.lists, self.direction = library, lists, step.direction
        self.addresses = [p.data_ptr() for p in step.parameters]
        self.strides = [p.stride() for p in step.parameters]
        self.table = cut(step.parameters, step.settings.unit_dims)
        self.width = COARSE if step.settings.elements is None else FINE
        self.sums = torch.empty(self.table.pieces, self.width, dtype=torch.float64)
        size = len(step.parameters)
        self.arrays = {name: (Pointer * size)(*[t.data_ptr() for t in tensors]) for name, tensors in lists.items()}
        self.arrays["gradient"] = (Pointer * size)()
        self.settings, variant = settings_of(step.direction, size)
        self.elementwise = CElementwise(rule=code("none"))
        tensors = CTensors(**{name: ctypes.addressof(array) for name, array in self.arrays.items()})
        self.structures = (self.table.c, tensors, self.settings, self.elementwise)
        self.arguments = (*[ctypes.byref(structure) for structure in self.structures], variant)
        adam = isinstance(step.direction, AdamDirection)
        self.run_measure = library.metastep_adam_measure if adam else library.metastep_momentum_measure
        self.run_move = library.metastep_adam_move if adam else library.metastep_momentum_move

    def serves(self, step: GroupStep, lists: dict[str, list[Tensor]]) -> bool:
        """Whether these are still the tensors and settings of a step."""
        return (
            self.direction == step.direction
            and self.lists.keys() == lists.keys()
            and all(all(map(operator.is_, mine, lists[name])) for name, mine in self.lists.items() if name != "theta")
            and self.addresses == [p.data_ptr() for p in step.parameters]
        )

    def begin(self, step: GroupStep) -> None:
        """First step: the pass is the same, its sums are zero because the last direction is."""
        self.measure(step)

    def measure(self, step: GroupStep) -> Tensor:
        """First pass, see `two_pass.measure`."""
        kept = self._update(step, gradients=True)
        sums, table, width = Pointer(self.sums.data_ptr()), self.table, self.width
        self.run_measure(*self.arguments, sums, torch.get_num_threads())
        del kept
        by_row = torch.empty(width, table.rows, dtype=torch.float64)
        sizes = map(ctypes.c_int64, (table.pieces, table.rows, width))
        self.library.metastep_fold_pieces(self.arguments[0], *sizes, sums, Pointer(by_row.data_ptr()))
        return by_row

    def adapt(self, step: GroupStep) -> bool:
        """See `adapt.adapt`; False for regularized rates, rate optimizers, and tensors that rested."""
        whole = step.active_mask is None and step.fresh is None
        if not whole or step.options.pull is not None or code(step.options.rule) < 0:
            return False
        assert step.rows is not None
        view = rates_view(step.options, step.state)
        self.library.metastep_adapt(*view.arguments, Pointer(step.rows.data_ptr()))
        step.state.alignment = view.alignment
        return True

    def move(self, step: GroupStep) -> None:
        """Second pass, see `two_pass.move`."""
        kept = self._update(step, gradients=False)
        combined = torch.empty(step.state.layout.tensor_of_row.shape[0])
        view = rates_view(step.options, step.state)
        self.library.metastep_combine(*view.arguments, Pointer(combined.data_ptr()))
        rows = step.rows_of_active(combined)
        self.run_move(*self.arguments, Pointer(rows.data_ptr()), torch.get_num_threads())
        del kept

    def _update(self, step: GroupStep, *, gradients: bool) -> list[Tensor]:
        """Bring in what changes from pass to pass; what is returned must outlive the call of the kernel."""
        kept = [step.counts(), step.of_active(step.state.factors)]
        self.settings.counts = kept[0].data_ptr()
        if step.settings.elements is not None:
            update_elementwise(self.elementwise, step, kept[1])
        self.settings.limit = step.state.limit
        self.settings.judged_decay = self.settings.decay if step.settings.regularized else 0.0
        if gradients:
            pairs = zip(step.gradients, self.strides, strict=True)
            dense = [
                g if g.stride() == stride else torch.empty_strided(g.shape, stride).copy_(g) for g, stride in pairs
            ]
            self.arrays["gradient"][:] = [g.data_ptr() for g in dense]
            kept += dense
        return kept


def settings_of(direction: Direction, tensors: int) -> tuple[CSettings, int]:
    """A direction's settings as the kernels read them, and which variant of its passes to run."""
    settings = CSettings(
        sign=-1.0 if direction.maximize else 1.0,
        decay=direction.weight_decay,
        decoupled=direction.decoupled_decay,
        tensors=tensors,
    )
    if isinstance(direction, MomentumDirection):
        settings.momentum, settings.dampening = direction.momentum, direction.dampening
        return settings, code("plain" if direction.momentum == 0 else "nesterov" if direction.nesterov else "momentum")
    assert isinstance(direction, AdamDirection)
    settings.beta1, settings.beta2, settings.eps = direction.beta1, direction.beta2, direction.eps
    return settings, int(direction.amsgrad)


def update_elementwise(c: CElementwise, step: GroupStep, factors: Tensor) -> None:
    """How the elementwise rates move and weigh."""
    elements, weights = step.settings.elements, step.state.weights
    assert elements is not None
    c.rule, c.initial = code(elements.rule), elements.bounds.initial
    c.step = elements.hyper_lr * (float(weights[-1]) if step.options.weighs_hypergradients else 1.0)
    c.low_rate, c.high_rate = elements.bounds.inside(torch.float32)
    c.low, c.high = elements.bounds.deviations(elements.rule)
    c.weight, c.factor = weights.data_ptr() + (len(weights) - 1) * weights.element_size(), factors.data_ptr()


def passes_for(step: GroupStep) -> CpuPasses | None:
    """The passes over a step's tensors; None for a group that the engine cannot take, or without a compiler.

    It takes momentum SGD and Adam, float32 on the CPU, dense, not cut too finely, and the rules that its kernels know.
    """
    direction, settings, state = step.direction, step.settings, step.state
    if type(direction) not in (MomentumDirection, AdamDirection) or state.dtype != torch.float32:
        return None
    kernels = load()
    if kernels is None or settings.include_decay or step.options.settle is not None:
        return None
    if code(step.options.combine) < 0:
        return None
    if settings.elements is not None and (settings.elements.pull or code(settings.elements.rule) < 0):
        return None
    lists = {"theta": step.parameters}
    lists |= {BUFFER_MEMBERS[key]: tensors for key, tensors in step.buffers.items()}
    if settings.elements is not None:
        lists["deviation"] = [state.elementwise[i] for i in step.active]
    known = state.cache.get(key := ("cpu passes", tuple(step.active)))
    if isinstance(known, CpuPasses) and known.serves(step, lists):
        return known
    if not all(map(usable, step.parameters)):
        return None
    dims = zip(step.parameters, settings.unit_dims, strict=True)
    stretches = sum(1 if dim is None else p.numel() // max(p.stride(dim), 1) for p, dim in dims)
    if stretches * SHORTEST_STRETCH > sum(p.numel() for p in step.parameters):
        return None
    if any(t.stride() != p.stride() for ts in lists.values() for t, p in zip(ts, step.parameters, strict=True)):
        return None
    passes = CpuPasses(kernels, step, lists)
    state.cache[key] = passes
    return passes


def usable(tensor: Tensor) -> bool:
    """Whether a parameter is a plain float32 tensor on the CPU whose numbers fill one stretch of memory."""
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return tensor.numel() > 0 or tensor.is_contiguous()

"""The hand-written CPU engine: momentum SGD and Adam over dense float32 tensors, each number touched once a pass.

It exists because `torch.compile` made the same two passes 2 to 3 times slower than this on the processors tried and
takes most of a minute to compile; this takes seconds, once per machine.
"""

from __future__ import annotations

import ctypes
import functools
import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metastep.optim import build
from metastep.optim.moments import FIRST, LARGEST, SECOND, AdamDirection
from metastep.optim.momentum import BUFFER, GRADIENT, Momentum
from metastep.optim.native_rates import native_rates, takes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.optim.direction import Direction
    from metastep.optim.work import Work

LONGEST_PIECE = 8192  # elements: short enough for sums in float32
TASK = 32768  # elements: long enough to be worth a thread's while
SHORTEST_STRETCH = 16  # mean elements per stretch of a row below which loops cost more than they save
COARSE, FINE = 3, 6  # sums of a piece, without and with elementwise rates
NAMES = {BUFFER: "first", GRADIENT: "second", FIRST: "first", SECOND: "second", LARGEST: "largest"}
RULES = {None: 0, "exponentiated": 1, "cosine": 1, "additive": 2, "log": 3}

Pointer = ctypes.c_void_p


class CTable(ctypes.Structure):
    """`Table` of native.cpp."""

    _fields_ = [
        ("tasks", ctypes.c_int64),
        *((name, Pointer) for name in ("begin", "tensor", "offset", "length", "row")),
    ]


class CElementwise(ctypes.Structure):
    """`Elementwise` of native.cpp."""

    _fields_ = [
        ("rule", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("up", "down", "step", "initial", "low_rate", "high_rate", "low", "high")),
        *((name, Pointer) for name in ("weight", "factor")),
    ]


class CTensors(ctypes.Structure):
    """`Tensors` of native.cpp."""

    _fields_ = [(name, Pointer) for name in ("theta", "gradient", "first", "second", "largest", "deviation")]


class CSettings(ctypes.Structure):
    """`Settings` of native.cpp."""

    _fields_ = [
        *((name, ctypes.c_float) for name in ("sign", "decay", "judged_decay", "decoupled")),
        *((name, ctypes.c_float) for name in ("momentum", "dampening", "eps")),
        *((name, ctypes.c_double) for name in ("beta1", "beta2")),
        ("tensors", ctypes.c_int64),
        ("counts", Pointer),
    ]


@dataclass(frozen=True, eq=False)
class Table:
    """How the active tensors are cut into pieces and tasks; the arrays are kept alive beside the pointers to them."""

    pieces: int
    rows: int
    arrays: tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]
    c: CTable


def cut(parameters: Sequence[Tensor], unit_dims: Sequence[int | None]) -> Table:
    """Cut dense tensors into pieces of rows: all stretches of memory with one index along the unit dim are a row."""
    columns: list[list[np.ndarray[tuple[int], np.dtype[np.int64]]]] = []
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


class Prepared:
    """A group's tensors as the kernel sees them: what stays the same from step to step while every tensor stays put.

    Args:
        work: The first step that these tensors take.
        lists: Name in `Tensors` to the tensors of each active parameter.
    """

    def __init__(self, work: Work, lists: dict[str, list[Tensor]]) -> None:
        self.lists, self.direction = lists, work.direction
        self.addresses = [p.data_ptr() for p in work.parameters]
        self.strides = [p.stride() for p in work.parameters]
        self.table = cut(work.parameters, work.plan.unit_dims)
        self.width = COARSE if work.plan.parameter is None else FINE
        self.sums = torch.empty(self.table.pieces, self.width, dtype=torch.float64)
        size = len(work.parameters)
        self.arrays = {
            name: (ctypes.c_void_p * size)(*[t.data_ptr() for t in tensors]) for name, tensors in lists.items()
        }
        self.arrays["gradient"] = (ctypes.c_void_p * size)()
        self.settings, self.variant = settings_of(work.direction, size)
        self.elementwise = CElementwise(rule=RULES[None])
        tensors = CTensors(**{name: ctypes.addressof(array) for name, array in self.arrays.items()})
        self.structures = (self.table.c, tensors, self.settings, self.elementwise)
        self.arguments = (*[ctypes.byref(structure) for structure in self.structures], self.variant)

    def serves(self, work: Work, lists: dict[str, list[Tensor]]) -> bool:
        """Whether these are still the tensors and settings of a step."""
        return (
            self.direction == work.direction
            and self.lists.keys() == lists.keys()
            and all(all(map(operator.is_, mine, lists[name])) for name, mine in self.lists.items() if name != "theta")
            and self.addresses == [p.data_ptr() for p in work.parameters]
        )

    def update(self, work: Work, *, gradients: bool) -> list[Tensor]:
        """Bring in what changes from pass to pass; what is returned must outlive the call of the kernel."""
        kept = [work.counts(), work.of_active(work.rates.factors)]
        self.settings.counts = kept[0].data_ptr()
        if work.plan.parameter is not None:
            update_elementwise(self.elementwise, work, kept[1])
        self.settings.judged_decay = self.settings.decay if work.plan.regularized else 0.0
        if gradients:
            pairs = zip(work.gradients, self.strides, strict=True)
            dense = [
                g if g.stride() == stride else torch.empty_strided(g.shape, stride).copy_(g) for g, stride in pairs
            ]
            self.arrays["gradient"][:] = [g.data_ptr() for g in dense]
            kept += dense
        return kept


def settings_of(direction: Direction, tensors: int) -> tuple[CSettings, int]:
    """A direction's settings as the kernel reads them, and which variant of its passes to run."""
    settings = CSettings(
        sign=-1.0 if direction.maximize else 1.0,
        decay=direction.weight_decay,
        decoupled=direction.decoupled_decay,
        tensors=tensors,
    )
    if isinstance(direction, Momentum):
        settings.momentum, settings.dampening = direction.momentum, direction.dampening
        return settings, 0 if direction.momentum == 0 else 2 if direction.nesterov else 1
    assert isinstance(direction, AdamDirection)
    settings.beta1, settings.beta2, settings.eps = direction.beta1, direction.beta2, direction.eps
    return settings, int(direction.amsgrad)


def update_elementwise(c: CElementwise, work: Work, factors: Tensor) -> None:
    """How the elementwise rates move and weigh."""
    rule = work.plan.parameter
    assert rule is not None
    weights = work.rates.weights
    scaled = work.group["scaled"] and work.group["pull"] is None
    step = rule.hyper_lr * (float(weights[-1]) if scaled else 1.0)
    c.rule, c.step, c.initial = RULES[rule.rule], step, rule.bounds.initial
    c.up, c.down = (math.log1p(step), math.log1p(-step)) if rule.rule == "cosine" else (step, -step)
    c.low_rate, c.high_rate = rule.bounds.inside(torch.float32)
    c.low, c.high = rule.bounds.deviations(rule.rule)
    c.weight, c.factor = weights.data_ptr() + (len(weights) - 1) * weights.element_size(), factors.data_ptr()


def prepare(work: Work) -> Prepared | None:
    """What the passes need; None for a group that the engine cannot take.

    It takes momentum SGD and Adam, float32 on the CPU, dense, not cut too finely.
    """
    direction, plan = work.direction, work.plan
    if type(direction) not in (Momentum, AdamDirection) or plan.include_decay or work.rates.dtype != torch.float32:
        return None
    if plan.parameter is not None and (plan.parameter.pulls or plan.parameter.rule not in RULES):
        return None
    lists = {"theta": work.parameters}
    lists |= {NAMES[key]: tensors for key, tensors in work.buffers.items()}
    if plan.parameter is not None:
        lists["deviation"] = [work.rates.elementwise[i] for i in work.active]
    known = work.rates.cache.get(key := ("native", tuple(work.active)))
    if isinstance(known, Prepared) and known.serves(work, lists):
        return known
    if not all(map(usable, work.parameters)):
        return None
    dims = zip(work.parameters, plan.unit_dims, strict=True)
    stretches = sum(1 if dim is None else p.numel() // max(p.stride(dim), 1) for p, dim in dims)
    if stretches * SHORTEST_STRETCH > sum(p.numel() for p in work.parameters):
        return None
    if any(t.stride() != p.stride() for ts in lists.values() for t, p in zip(ts, work.parameters, strict=True)):
        return None
    prepared = Prepared(work, lists)
    work.rates.cache[key] = prepared
    return prepared


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


class Native:
    """The two passes of `phases`, and `adapt` between them, for what `prepare` takes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def begin(self, work: Work) -> None:
        """First step: the pass is the same, its sums are zero because the last direction is."""
        self.measure(work)

    def measure(self, work: Work) -> Tensor:
        """First pass, see `phases.measure`."""
        prepared = prepared_of(work)
        kept = prepared.update(work, gradients=True)
        adam = isinstance(work.direction, AdamDirection)
        run = self.library.metastep_adam_measure if adam else self.library.metastep_momentum_measure
        sums, table, width = Pointer(prepared.sums.data_ptr()), prepared.table, prepared.width
        run(*prepared.arguments, sums, torch.get_num_threads())
        del kept
        by_row = torch.empty(width, table.rows, dtype=torch.float64)
        sizes = map(ctypes.c_int64, (table.pieces, table.rows, width))
        self.library.metastep_fold_pieces(prepared.arguments[0], *sizes, sums, Pointer(by_row.data_ptr()))
        return by_row

    def adapt(self, work: Work) -> bool:
        """See `adapt.adapt`."""
        if not takes(work):
            return False
        assert work.rows is not None
        kernel = native_rates(work.group, work.rates)
        self.library.metastep_adapt(*kernel.arguments, Pointer(work.rows.data_ptr()))
        work.rates.alignment = kernel.alignment
        return True

    def move(self, work: Work) -> None:
        """Second pass, see `phases.move`."""
        prepared = prepared_of(work)
        kept = prepared.update(work, gradients=False)
        combined = torch.empty(work.rates.layout.tensor_of_row.shape[0])
        self.library.metastep_combine(*native_rates(work.group, work.rates).arguments, Pointer(combined.data_ptr()))
        rows = work.rows_of_active(combined)
        adam = isinstance(work.direction, AdamDirection)
        run = self.library.metastep_adam_move if adam else self.library.metastep_momentum_move
        run(*prepared.arguments, Pointer(rows.data_ptr()), torch.get_num_threads())
        del kept


def prepared_of(work: Work) -> Prepared:
    """What `prepare` made for this step."""
    assert isinstance(work.prepared, Prepared)
    return work.prepared


@functools.cache
def load() -> Native | None:
    """The engine, where its kernel can be built."""
    library = build.load()
    return None if library is None else Native(library)

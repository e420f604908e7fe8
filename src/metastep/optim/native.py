"""The hand-written CPU engine: momentum SGD and Adam over dense float32 tensors, each number touched once a pass.

It exists because `torch.compile` made the same two passes 2 to 3 times slower than this on the processors tried and
takes most of a minute to compile; this takes seconds, once per machine.
"""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metastep.optim import build
from metastep.optim.moments import FIRST, LARGEST, SECOND, AdamDirection
from metastep.optim.momentum import BUFFER, GRADIENT, Momentum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.optim.work import Work

LONGEST_PIECE = 8192  # elements: short enough for sums in float32
TASK = 32768  # elements: long enough to be worth a thread's while
SHORTEST_STRETCH = 16  # mean elements per stretch of a row below which loops cost more than they save
SUMS = 6
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
        *((name, Pointer) for name in ("factor", "share")),
    ]


class CTensors(ctypes.Structure):
    """`Tensors` of native.cpp."""

    _fields_ = [(name, Pointer) for name in ("theta", "gradient", "first", "second", "largest", "deviation")]


class CSettings(ctypes.Structure):
    """`Settings` of native.cpp."""

    _fields_ = [
        *((name, ctypes.c_float) for name in ("sign", "decay", "judged_decay", "decoupled")),
        *((name, ctypes.c_float) for name in ("momentum", "beta1", "beta2", "eps")),
        *((name, Pointer) for name in ("share", "first_inverse", "second_inverse")),
    ]


@dataclass(frozen=True, eq=False)
class Table:
    """How the active tensors are cut into pieces and tasks; the arrays are kept alive beside the pointers to them."""

    pieces: int
    rows: int
    arrays: tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]
    c: CTable
    sums: Tensor  # (pieces, 6) float64


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
    return Table(len(lengths), first_row, arrays, c, torch.empty(len(lengths), SUMS, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Prepared:
    """What stays the same from step to step as long as every tensor stays where it is.

    Args:
        lists: Name in `Tensors` to the tensors of each active parameter.
        addresses: Of those tensors, to know them again.
        arrays: Name to the C array of them.
        table: How they are cut.
    """

    lists: dict[str, list[Tensor]]
    addresses: list[list[int]]
    arrays: dict[str, ctypes.Array[ctypes.c_void_p]]
    table: Table


def prepare(work: Work) -> Prepared | None:
    """Everything the passes need that does not change; None for a group that the engine cannot take.

    It takes momentum SGD and Adam, float32 on the CPU, dense, not cut too finely.
    """
    direction, plan = work.direction, work.plan
    if type(direction) not in (Momentum, AdamDirection) or plan.include_decay:
        return None
    if plan.parameter is not None and (plan.parameter.pulls or plan.parameter.rule not in RULES):
        return None
    lists = {"theta": work.parameters}
    lists |= {NAMES[key]: tensors for key, tensors in work.buffers.items()}
    if plan.parameter is not None:
        lists["deviation"] = [work.rates.elementwise[i] for i in work.active]
    addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in lists.values()]
    known = work.rates.cache.get(key := ("native", tuple(work.active)))
    if isinstance(known, Prepared) and known.addresses == addresses and known.lists.keys() == lists.keys():
        return known
    if not all(map(usable, work.parameters)):
        return None
    dims = zip(work.parameters, plan.unit_dims, strict=True)
    stretches = sum(1 if dim is None else p.numel() // max(p.stride(dim), 1) for p, dim in dims)
    if stretches * SHORTEST_STRETCH > sum(p.numel() for p in work.parameters):
        return None
    if any(t.stride() != p.stride() for ts in lists.values() for t, p in zip(ts, work.parameters, strict=True)):
        return None
    arrays = {name: (ctypes.c_void_p * len(column))(*column) for name, column in zip(lists, addresses, strict=True)}
    prepared = Prepared(lists, addresses, arrays, cut(work.parameters, plan.unit_dims))
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
    """The two passes of `phases` for what `prepare` takes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def begin(self, work: Work) -> None:
        """First step: the pass is the same, its sums are zero because the last direction is."""
        self.measure(work)

    def measure(self, work: Work) -> Tensor:
        """First pass, see `phases.measure`."""
        call = Call(work, gradients=True)
        run = self.library.metastep_adam_measure if call.adam else self.library.metastep_momentum_measure
        sums = call.table.sums
        run(*call.arguments, call.variant, Pointer(sums.data_ptr()), torch.get_num_threads())
        by_row = torch.empty(SUMS, call.table.rows, dtype=torch.float64)
        self.library.metastep_fold_pieces(
            call.arguments[0],
            ctypes.c_int64(call.table.pieces),
            ctypes.c_int64(call.table.rows),
            Pointer(sums.data_ptr()),
            Pointer(by_row.data_ptr()),
        )
        return by_row if work.plan.parameter is not None else by_row[:3]

    def move(self, work: Work) -> None:
        """Second pass, see `phases.move`."""
        call, rates = Call(work, gradients=False), work.rates
        combined = rates.combined_rows() * rates.factors[rates.layout.tensor_of_row]
        rows = work.rows_of_active(combined).float().contiguous()
        run = self.library.metastep_adam_move if call.adam else self.library.metastep_momentum_move
        run(*call.arguments, call.variant, Pointer(rows.data_ptr()), torch.get_num_threads())


class Call:
    """One call's arguments; what they point to lives as long as this."""

    def __init__(self, work: Work, *, gradients: bool) -> None:
        prepared = work.prepared
        assert isinstance(prepared, Prepared)
        self.table = prepared.table
        self.kept: list[object] = []
        direction, counts = work.direction, work.counts()
        self.adam = isinstance(direction, AdamDirection)
        addresses = {name: ctypes.addressof(array) for name, array in prepared.arrays.items()}
        if gradients:
            pairs = zip(work.gradients, work.parameters, strict=True)
            dense = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for g, p in pairs]
            array = (ctypes.c_void_p * len(dense))(*[g.data_ptr() for g in dense])
            self.kept += [dense, array]
            addresses["gradient"] = ctypes.addressof(array)
        settings = {"sign": -1.0 if direction.maximize else 1.0, "decay": direction.weight_decay}
        settings["judged_decay"] = direction.weight_decay if work.plan.regularized else 0.0
        settings["decoupled"] = direction.decoupled_decay
        vectors: dict[str, Tensor] = {}
        if isinstance(direction, Momentum):
            settings["momentum"] = direction.momentum
            self.variant = 0 if direction.momentum == 0 else 2 if direction.nesterov else 1
            vectors["share"] = 1 - direction.dampening * (counts > 0)
        else:
            assert isinstance(direction, AdamDirection)
            settings |= {"beta1": direction.beta1, "beta2": direction.beta2, "eps": direction.eps}
            self.variant = int(direction.amsgrad)
            first, second = direction.corrections(counts)
            vectors |= {"first_inverse": 1 / first, "second_inverse": 1 / second}
        structures = (
            prepared.table.c,
            CTensors(**addresses),
            CSettings(**settings, **{name: self.vector(values) for name, values in vectors.items()}),
            self.elementwise(work),
        )
        self.kept.append(structures)
        self.arguments = [ctypes.byref(structure) for structure in structures]

    def elementwise(self, work: Work) -> CElementwise:
        """How the elementwise rates move and weigh."""
        rule = work.plan.parameter
        if rule is None:
            return CElementwise(rule=RULES[None])
        rates, bounds = work.rates, rule.bounds
        weight = float(rates.weights[-1])
        step = rule.hyper_lr * (weight if work.group["scaled"] and work.group["pull"] is None else 1.0)
        up, down = (math.log1p(step), math.log1p(-step)) if rule.rule == "cosine" else (step, -step)
        low_rate, high_rate = bounds.inside(torch.float32)
        low, high = bounds.deviations(rule.rule)
        factors = work.of_active(rates.factors)
        return CElementwise(
            rule=RULES[rule.rule], up=up, down=down, step=step, initial=bounds.initial, low_rate=low_rate,
            high_rate=high_rate, low=low, high=high, factor=self.vector(factors), share=self.vector(weight * factors),
        )  # fmt: skip

    def vector(self, values: Tensor) -> int:
        """Address of the values in float32."""
        kept = values.float().contiguous()
        self.kept.append(kept)
        return kept.data_ptr()


@functools.cache
def load() -> Native | None:
    """The engine, where its kernel can be built."""
    library = build.load()
    return None if library is None else Native(library)

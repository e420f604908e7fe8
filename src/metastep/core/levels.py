"""Which parameters share a rate: the levels, and the groups that each of them has.

Shapes: T tensors of one parameter group, R rows (the finest groups that a sum is taken over), L layers, U units.
A row is one unit of a tensor (a slice along its unit dimension) where units have rates of their own, otherwise a
whole tensor. Every coarser sum is a sum of rows, because the levels are nested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS = ("global", "layer", "unit", "parameter")


@dataclass(frozen=True, eq=False)
class RowLayout:
    """How the rows of T tensors fold into units, layers and the whole group.

    Args:
        unit_dims: Per tensor, the dimension whose slices are its rows; None where the tensor is one row.
        row_counts: Per tensor, its number of rows (R in all).
        unit_offsets: Per tensor, where its rows begin among the units; tied tensors begin at the same place.
        layer_indices: Per tensor, the layer it belongs to.
        tensor_of_row: (R,) int64, the tensor of each row.
        index: Per level, (R,) int64: the group each row belongs to.
        sizes: Per level, the number of groups.
        row_elements: (R,) elements in each row.
        elements: Per level, elements in each group.
    """

    unit_dims: tuple[int | None, ...]
    row_counts: tuple[int, ...]
    unit_offsets: tuple[int, ...]
    layer_indices: tuple[int, ...]
    tensor_of_row: Tensor
    index: dict[str, Tensor]
    sizes: dict[str, int]
    row_elements: Tensor
    elements: dict[str, Tensor]


def default_unit_dim(shape: torch.Size) -> int | None:
    """The dimension whose slices are units: the first of a matrix or a kernel, none of a vector or a scalar."""
    return 0 if len(shape) >= 2 else None


def make_layout(
    shapes: Sequence[torch.Size],
    *,
    units: bool,
    unit_dims: Sequence[int | None],
    layer_keys: Sequence[object],
    unit_keys: Sequence[object],
    device: torch.device,
) -> RowLayout:
    """Build the layout of the tensors of one group.

    Args:
        shapes: Shape of each tensor (T of them).
        units: Whether units have rates of their own; without, every tensor is one row.
        unit_dims: Per tensor, the dimension of its units or None.
        layer_keys: Per tensor; tensors with equal keys share their layer rate.
        unit_keys: Per tensor; tensors with equal keys and equally many units share their unit rates.
        device: Where the index tensors live.
    """
    dims = tuple(dim if units else None for dim in unit_dims)
    counts = tuple(1 if dim is None else shape[dim] for dim, shape in zip(dims, shapes, strict=True))
    layers: dict[object, int] = {}
    offsets_of: dict[object, int] = {}
    layer_indices, unit_offsets, total_units = [], [], 0
    for position, count in enumerate(counts):
        layer_indices.append(layers.setdefault(layer_keys[position], len(layers)))
        key = (unit_keys[position], count)
        if key not in offsets_of:
            offsets_of[key] = total_units
            total_units += count
        unit_offsets.append(offsets_of[key])

    def rows(values: Sequence[int]) -> Tensor:
        pairs = zip(values, counts, strict=True)
        return torch.tensor([value for value, count in pairs for _ in range(count)], dtype=torch.int64)

    tensor_of_row = rows(range(len(shapes)))
    unit_of_row = [start + i for start, count in zip(unit_offsets, counts, strict=True) for i in range(count)]
    per_row = [shape.numel() // count if count else 0 for shape, count in zip(shapes, counts, strict=True)]
    index = {
        "global": torch.zeros_like(tensor_of_row),
        "layer": rows(layer_indices),
        "unit": torch.tensor(unit_of_row, dtype=torch.int64),
    }
    sizes = {"global": 1, "layer": len(layers), "unit": total_units}
    row_elements = rows(per_row).to(accumulator(device))
    elements = {level: torch.zeros(n, dtype=row_elements.dtype) for level, n in sizes.items()}
    for level, sums in elements.items():
        sums.index_add_(0, index[level], row_elements)
    return RowLayout(
        unit_dims=dims,
        row_counts=counts,
        unit_offsets=tuple(unit_offsets),
        layer_indices=tuple(layer_indices),
        tensor_of_row=tensor_of_row.to(device),
        index={level: values.to(device) for level, values in index.items()},
        sizes=sizes,
        row_elements=row_elements.to(device),
        elements={level: values.to(device) for level, values in elements.items()},
    )


def accumulator(device: torch.device) -> torch.dtype:
    """The type that sums across rows are kept in: float64, or float32 where a device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64

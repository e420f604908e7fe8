"""The one inner product on which hypergradients and meta-gradients rest: whole, by rows, by the groups of a level.

`gradient_products` takes it of a gradient that is never there as a whole.

Shapes: R rows (a slice of a tensor along its unit dimension, or a whole tensor; see `metastep.core.levels`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metastep.core.distributed import local_gradient, part_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from metastep.core.levels import RowLayout


def inner_product(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    r"""Return the inner product of two lists of tensors, :math:`\sum_k \langle a_k, b_k \rangle`.

    Products of low-precision tensors are accumulated in float32, those of float64 in float64; the sums of the
    tensors are added in float64. Complex tensors contribute the real part of :math:`\langle \bar a, b\rangle`.

    Args:
        a: tensors of any shapes, dtypes and layouts; empty tensors contribute nothing.
        b: as many tensors, of the same shapes and on the same devices.

    Returns:
        A 0-d float64 tensor (float32 on mps) on the device of the first pair; nothing is read back to the host.

    Raises:
        ValueError: if the lists are empty, differ in length, or two partners differ in shape.
    """
    partial = [_one(x, y) for x, y in zip(a, b, strict=True)]
    if not partial:
        raise ValueError("a and b must hold at least one tensor each; got none.")
    device = partial[0].device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # the one device without float64
    return torch.stack([p.to(device) for p in partial]).sum(dtype=dtype)


def _one(x: Tensor, y: Tensor) -> Tensor:
    if x.shape != y.shape:
        raise ValueError(f"a and b must agree in shape, got {tuple(x.shape)} and {tuple(y.shape)}.")
    if x.is_complex() or y.is_complex():
        x, y = torch.view_as_real(x.resolve_conj()), torch.view_as_real(y.resolve_conj())
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    if x.stride() == y.stride() and not x.is_contiguous():  # in the order of memory, channels_last costs no copy
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        x, y = x.permute(order), y.permute(order)
    return torch.dot(x.reshape(-1).to(dtype), y.reshape(-1).to(dtype))


def gradient_products(
    loss: Tensor, parameters: Sequence[nn.Parameter], others: Sequence[Sequence[Tensor]], *, sharded: bool = False
) -> Tensor | None:
    r"""Return the inner products of the gradient of a loss with K lists of tensors.

    .. math:: s_k = \langle \nabla L, \Delta_k \rangle

    The backward pass is run here, into the parameters' ``grad``, which is to be None before it. Each parameter's part
    is multiplied as it arrives and let go, so the gradient is never held as a whole.

    Args:
        loss: one element, with a graph.
        parameters: for which the gradient is taken; those that require none are passed over.
        others: K lists with one tensor for each parameter; of a sharded one, what is here.
        sharded: whether one of the parameters is: then each rank returns the products of what it has, times the number
            of parts, of which the mean over ranks is the inner product.

    Returns:
        (K,) float64 (float32 on mps); None if the loss depends on none of the parameters.
    """
    products: list[Tensor] = []

    def multiply(place: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = local_gradient(parameter) if sharded else parameter.grad, None
            if gradient is None:
                return
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            product = torch.stack([inner_product([gradient], [other[place]]) for other in others])
            products.append(product * part_count(parameter) if sharded else product)

        return hook

    inputs = [parameter for parameter in parameters if parameter.requires_grad]
    handles = [
        parameter.register_post_accumulate_grad_hook(multiply(place))  # type: ignore[no-untyped-call]
        for place, parameter in enumerate(parameters)
        if parameter.requires_grad
    ]
    try:  # the parts that FSDP keeps are not in the graph, what it puts together for the pass is
        torch.autograd.backward(loss, inputs=None if sharded else inputs)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([product.to(products[0].device) for product in products]).sum(0) if products else None


def row_sums(product: Tensor, unit_dim: int | None) -> Tensor:
    """Sum an elementwise product over every dimension but the unit's, giving (rows,) of its own type."""
    if unit_dim is None:
        return product.sum().reshape(1)
    rest = [dim for dim in range(product.dim()) if dim != unit_dim]
    return product.sum(dim=rest) if rest else product.reshape(-1)


def row_products(gradients: Iterable[Tensor], directions: Iterable[Tensor], unit_dims: Sequence[int | None]) -> Tensor:
    """<g, u>, |g|^2 and |u|^2 of every row of some tensors, (3, R), each pair in float32 at least.

    Args:
        gradients: g, one tensor after the other.
        directions: u, of the same shapes; taken one by one, so that a generator needs room for one only.
        unit_dims: Per tensor, the dimension of its rows, or None.
    """
    columns = []
    for gradient, direction, dim in zip(gradients, directions, unit_dims, strict=True):
        g, u = wide(gradient), wide(direction)
        columns.append([row_dots(g, u, dim), row_dots(g, g, dim), row_dots(u, u, dim)])
    return torch.stack([torch.cat(column) for column in zip(*columns, strict=True)])


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def row_dots(a: Tensor, b: Tensor, unit_dim: int | None) -> Tensor:
    """Inner product of two tensors of one shape over each row, (rows,); without a temporary where memory allows."""
    plain = a.is_contiguous() and b.is_contiguous() and a.numel() > 0 and not torch.compiler.is_compiling()
    if plain and unit_dim is None:
        return torch.dot(a.reshape(-1), b.reshape(-1)).reshape(1)
    if plain and unit_dim == 0 and a.dim() > 1:
        rows = a.shape[0]
        return torch.bmm(a.reshape(rows, 1, -1), b.reshape(rows, -1, 1)).reshape(rows)
    return row_sums(a * b, unit_dim)


def fold(rows: Tensor, layout: RowLayout, level: str) -> Tensor:
    """Sum rows down to the groups of a level: (K, R) to (K, groups)."""
    if level == "global":
        return rows.sum(dim=1, keepdim=True)
    return rows.new_zeros(rows.shape[0], layout.sizes[level]).index_add_(1, layout.index[level], rows)


def spread(values: Tensor, layout: RowLayout, level: str) -> Tensor:
    """Give every row the value of its group: (groups,) to (R,)."""
    if level == "global":
        return values.expand(layout.tensor_of_row.shape[0])
    return values[layout.index[level]]


def row_views(rows: Tensor, unit_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Cut (R,) into one view per tensor that broadcasts against it; the rows are those of these tensors in order."""
    counts = [1 if dim is None else tensor.shape[dim] for dim, tensor in zip(unit_dims, tensors, strict=True)]
    views = []
    for part, dim, tensor in zip(torch.split(rows, counts), unit_dims, tensors, strict=True):
        if dim is None:
            views.append(part.reshape(()))
        else:
            views.append(part.reshape([-1 if i == dim else 1 for i in range(tensor.dim())]))
    return views

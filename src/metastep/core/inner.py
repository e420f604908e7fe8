"""The one inner product on which hypergradients and meta-gradients rest."""

from collections.abc import Iterable

import torch
from torch import Tensor


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
